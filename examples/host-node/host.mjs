// A host without dependencies: make a connect link, show how things stand, verify a webhook.
import { createHmac, timingSafeEqual } from "node:crypto";
import { createServer } from "node:http";

const broker = process.env.BROKER_URL ?? "http://localhost:8000";
const port = Number(process.env.PORT ?? 5000);
const user = "user-42"; // whoever is signed in to your product

async function call(path, options = {}) {
  const headers = { Authorization: `Bearer ${process.env.BROKER_API_KEY}`, "Content-Type": "application/json" };
  const answer = await fetch(`${broker}/api/v1/${path}`, { ...options, headers });
  const content = await answer.json();
  if (!answer.ok) throw new Error(`${content.code}: ${content.detail}`);
  return content;
}

// Standard Webhooks: HMAC-SHA256 over id, timestamp and the raw body, and not older than five minutes.
function verified(headers, body) {
  const { "webhook-id": id, "webhook-timestamp": time, "webhook-signature": signatures } = headers;
  if (!id || !signatures || !(Math.abs(Date.now() / 1000 - Number(time)) < 300)) return false;
  const key = Buffer.from(process.env.WEBHOOK_SECRET.replace(/^whsec_/, ""), "base64");
  const wanted = createHmac("sha256", key).update(`${id}.${time}.${body}`).digest();
  return signatures.split(" ").some((each) => {
    const given = Buffer.from(each.replace(/^v1,/, ""), "base64");
    return given.length === wanted.length && timingSafeEqual(given, wanted);
  });
}

const escaped = (text) => String(text).replace(/[&<>"]/g, (letter) => `&#${letter.charCodeAt(0)};`);

async function answer(request, response) {
  let body = "";
  for await (const part of request.setEncoding("utf8")) body += part;
  if (request.method === "POST" && request.url === "/connect") {
    const wish = { end_user: { id: user, email: "ada@example.com" }, return_url: `http://localhost:${port}/` };
    const link = await call("connect-links", { method: "POST", body: JSON.stringify(wish) });
    response.writeHead(303, { Location: link.url }).end();
  } else if (request.method === "POST" && request.url === "/webhooks") {
    const genuine = verified(request.headers, body);
    if (genuine) console.log(JSON.parse(body).type);
    response.writeHead(genuine ? 204 : 400).end();
  } else {
    const { data } = await call(`connections?end_user=${encodeURIComponent(user)}`);
    const items = data.map((each) => `<li>${escaped(each.account?.name)}: ${each.status}, ${escaped(each.note)}</li>`);
    response.writeHead(200, { "Content-Type": "text/html; charset=utf-8" });
    response.end(`<h1>Settings</h1><form method="post" action="/connect"><button>Connect an account</button></form><ul>${items.join("")}</ul>`);
  }
}

createServer((request, response) => {
  answer(request, response).catch((failure) => response.writeHead(502).end(failure.message));
}).listen(port, "127.0.0.1");
