#!/bin/sh
# The host API by hand: make a connect link, open it, and see how things stand.
# Usage: BROKER_API_KEY=brk_… sh host.sh link|status [END_USER]
set -eu
broker="${BROKER_URL:-http://localhost:8000}/api/v1"
user="${2:-user-42}"

call() {
	curl --silent --show-error --fail-with-body -H "Authorization: Bearer $BROKER_API_KEY" "$@"
	echo
}

case "${1:-}" in
link)
	# The same key again makes no second link: repeat the call when its answer was lost.
	call "$broker/connect-links" -H "Content-Type: application/json" -H "Idempotency-Key: ${IDEMPOTENCY_KEY:-$user-$(date +%s)}" \
		--data "{\"end_user\": {\"id\": \"$user\"}}"
	;;
status) call --get "$broker/connections" --data-urlencode "end_user=$user" ;;
*)
	echo "Usage: BROKER_API_KEY=brk_… sh host.sh link|status [END_USER]" >&2
	exit 2
	;;
esac
