#!/bin/bash
# Runs as the router's preStop hook; the router gets SIGTERM, and dies at once, when it returns.
# Uses bash alone, because the Envoy image has neither curl nor wget.
#
# 1. Serve on while Services and load balancers forget this pod.
# 2. Ask clients to leave: responses carry `connection: close`, HTTP/2 clients get GOAWAY.
#    Listeners stay open, so a client that still comes is served rather than refused.
# 3. Leave when nobody uses the router any more, or when the drain budget is spent.
set -u
withdrawal_seconds=$1
drain_seconds=$2
quiet_seconds=3
admin_port=${ADMIN_PORT:-9901}

# admin METHOD PATH: the answer of Envoy's admin port.
admin() {
  exec 3<>"/dev/tcp/127.0.0.1/$admin_port" || return 1
  printf '%s %s HTTP/1.1\r\nhost: admin\r\nconnection: close\r\ncontent-length: 0\r\n\r\n' "$1" "$2" >&3
  cat <&3
  exec 3>&-
}

# usage STAT: the sum of a statistic over the client-facing listeners.
usage() {
  local line sum=0
  while IFS= read -r line; do
    [[ $line =~ ^http\.edge_[a-z]+\.$1:\ ([0-9]+) ]] && sum=$((sum + BASH_REMATCH[1]))
  done < <(admin GET "/stats?filter=http.edge_.*.$1")
  echo "$sum"
}

say() { echo "{\"logger\":\"drain\",\"message\":\"$1\"}" >/proc/1/fd/1 2>/dev/null || true; }

sleep "$withdrawal_seconds"
admin POST '/drain_listeners?graceful&skip_exit' >/dev/null || exit 0
# SECONDS steps at whole seconds of the clock, so a difference may be up to 1 s too large.
deadline=$((SECONDS + drain_seconds + 1))
quiet_since=$SECONDS
seen=-1
while ((SECONDS < deadline)); do
  active=$(usage downstream_rq_active)
  total=$(usage downstream_rq_total)
  connections=$(usage downstream_cx_active)
  if ((active > 0 || total != seen)); then
    quiet_since=$SECONDS
    seen=$total
  fi
  # Without connections nobody can be cut; with idle ones, a while without requests has to do.
  if ((active == 0)) && ((connections == 0 || SECONDS - quiet_since > quiet_seconds)); then
    say "drained: 0 requests, $connections idle connections"
    exit 0
  fi
  sleep 0.5
done
say "drain budget of $drain_seconds s spent with $(usage downstream_rq_active) requests open"
