# The broker in a container: what requirements.txt pins, by hash, and the checkout beside it.
#
#   docker build -t broker .
#   docker run --rm broker keys generate
#
# The root file system can be read-only: only /tmp (kept in memory by whoever runs it) and, with an embedded database, /data
# are written to. A package index of your own goes in as a build secret, so that no layer holds it:
#
#   docker build --secret id=pip,src=pip.conf -t broker .
#
# With OpenTelemetry in it (docs/operating.md):
#
#   docker build --build-arg REQUIREMENTS=requirements-otel.txt -t broker .

FROM python:3.13-slim AS build
RUN python -m venv /opt/venv
ARG REQUIREMENTS=requirements.txt
COPY requirements.txt requirements-otel.txt /tmp/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes --requirement /tmp/"$REQUIREMENTS" \
    && /opt/venv/bin/pip uninstall --quiet --yes pip
COPY wsgi.py /app/
COPY migrations /app/migrations
COPY templates /app/templates
COPY broker /app/broker
# Compiled here: the processes could not keep it, and start faster with it.
RUN /opt/venv/bin/python -m compileall -q -j 0 /app /opt/venv/lib

FROM python:3.13-slim
RUN groupadd --system --gid 10001 broker \
    && useradd --system --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin broker \
    && install -d -o 10001 -g 10001 -m 0700 /data
COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    DATA_DIR=/data
WORKDIR /app
USER 10001:10001
EXPOSE 8000
# By http.client: it asks no proxy. A worker has no such page; switch this off there.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8000, timeout=4); c.request('GET', '/healthz'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["python", "-m", "broker"]
CMD ["web", "--bind", "0.0.0.0:8000"]
