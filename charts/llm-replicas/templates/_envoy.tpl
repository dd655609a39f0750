{{/*
The router's Envoy configuration, from the traffic policy.
Call: include "llm-replicas.envoyConfig" $
*/}}
{{- define "llm-replicas.envoyConfig" -}}
{{- $policy := include "llm-replicas.trafficPolicy" . | fromYaml -}}
{{- $router := .Values.router -}}
# Only the pod itself may talk to the admin port: it can stop the router.
admin:
  address:
    socket_address: {address: 127.0.0.1, port_value: 9901}
application_log_config:
  log_format:
    json_format: {time: "%Y-%m-%dT%H:%M:%S.%fZ", level: "%l", logger: "%n", message: "%j"}
overload_manager:
  resource_monitors:
    - name: envoy.resource_monitors.global_downstream_max_connections
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig
        max_active_downstream_connections: {{ $router.maxConnections }}
static_resources:
  listeners:
    - name: http
      address:
        socket_address: {address: {{ include "llm-replicas.anyAddress" . }}, port_value: 8080}
      per_connection_buffer_limit_bytes: 1048576
      filter_chains:
        - filters:
            - name: envoy.filters.network.http_connection_manager
              typed_config:
                {{- include "llm-replicas.envoyConnectionManager" (dict "root" . "policy" $policy "listener" "http" "codec" "AUTO") | nindent 16 }}
                route_config:
                  name: http
                  virtual_hosts:
                    - name: models
                      domains: ["*"]
                      {{- include "llm-replicas.envoyResponseHeaders" . | nindent 22 }}
                      routes:
                        - name: models
                          match:
                            safe_regex: {regex: {{ $policy.routes.http.pathRegex | quote }}}
                            headers:
                              - {name: ":method", string_match: {exact: {{ $policy.routes.http.method }}}}
                          route: {{- include "llm-replicas.envoyRoute" (dict "policy" $policy "cluster" "replicas-http") | nindent 28 }}
                        - name: denied
                          match: {prefix: /}
                          direct_response: {status: 404}
    - name: grpc
      address:
        socket_address: {address: {{ include "llm-replicas.anyAddress" . }}, port_value: 8081}
      per_connection_buffer_limit_bytes: 1048576
      filter_chains:
        - filters:
            - name: envoy.filters.network.http_connection_manager
              typed_config:
                {{- include "llm-replicas.envoyConnectionManager" (dict "root" . "policy" $policy "listener" "grpc" "codec" "HTTP2") | nindent 16 }}
                route_config:
                  name: grpc
                  virtual_hosts:
                    - name: models
                      domains: ["*"]
                      {{- include "llm-replicas.envoyResponseHeaders" . | nindent 22 }}
                      routes:
                        {{- range $path := $policy.routes.grpc.paths }}
                        - name: models
                          match:
                            path: {{ $path }}
                            headers:
                              - {name: ":method", string_match: {exact: POST}}
                            grpc: {}
                          route: {{- include "llm-replicas.envoyRoute" (dict "policy" $policy "cluster" "replicas-grpc") | nindent 28 }}
                        {{- end }}
                        - name: denied
                          match: {prefix: /}
                          direct_response: {status: 404}
    {{- /* The kubelet and Prometheus may see readiness and metrics, and nothing else of the admin port. */}}
    - name: observe
      address:
        socket_address: {address: {{ include "llm-replicas.anyAddress" . }}, port_value: 9902}
      {{- /* Probes must still be answered when clients fill the connection limit. */}}
      ignore_global_conn_limit: true
      filter_chains:
        - filters:
            - name: envoy.filters.network.http_connection_manager
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
                stat_prefix: observe
                normalize_path: true
                route_config:
                  name: observe
                  virtual_hosts:
                    - name: observe
                      domains: ["*"]
                      routes:
                        {{- range $path := list "/ready" "/stats/prometheus" }}
                        - match:
                            path: {{ $path }}
                            headers:
                              - {name: ":method", string_match: {exact: GET}}
                          route: {cluster: admin}
                        {{- end }}
                        - match: {prefix: /}
                          direct_response: {status: 404}
                http_filters:
                  - name: envoy.filters.http.router
                    typed_config:
                      "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
  clusters:
    {{- range $name, $port := dict "http" 8000 "grpc" 8001 }}
    - {{- include "llm-replicas.envoyCluster" (dict "root" $ "policy" $policy "protocol" $name "port" $port) | nindent 6 }}
    {{- end }}
    - name: admin
      type: STATIC
      connect_timeout: 1s
      load_assignment:
        cluster_name: admin
        endpoints:
          - lb_endpoints:
              - endpoint:
                  address:
                    socket_address: {address: 127.0.0.1, port_value: 9901}
{{- end -}}

{{/*
Tells the client who answered it. Call: include "llm-replicas.envoyResponseHeaders" $
*/}}
{{- define "llm-replicas.envoyResponseHeaders" -}}
{{- if .Values.router.responseHeaders }}
response_headers_to_add:
  {{- range $name, $value := dict "x-llm-replica" "%UPSTREAM_REMOTE_ADDRESS%" "x-llm-router" "%ENVIRONMENT(POD_NAME)%" "x-llm-attempts" "%UPSTREAM_REQUEST_ATTEMPT_COUNT%" }}
  - header: {key: {{ $name }}, value: "{{ $value }}"}
    append_action: OVERWRITE_IF_EXISTS_OR_ADD
  {{- end }}
{{- end }}
{{- end -}}

{{- define "llm-replicas.anyAddress" -}}
{{- ternary "\"::\"" "0.0.0.0" (eq .Values.router.discovery.addressFamily "ipv6") -}}
{{- end -}}

{{/*
How the router meets clients: what it accepts, logs and tells.
Call: include "llm-replicas.envoyConnectionManager" (dict "root" $ "policy" $policy "listener" "http" "codec" "AUTO")
*/}}
{{- define "llm-replicas.envoyConnectionManager" -}}
{{- $root := .root -}}
{{- $policy := .policy -}}
{{- $listener := .listener -}}
"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
stat_prefix: edge_{{ $listener }}
codec_type: {{ .codec }}
{{- /* The router is the edge: headers that steer Envoy are taken from nobody, whatever address they come from. */}}
use_remote_address: true
internal_address_config: {unix_sockets: false, cidr_ranges: []}
server_header_transformation: PASS_THROUGH
{{- /* Paths are compared after normalisation, and an escaped slash is no slash. */}}
normalize_path: true
merge_slashes: true
path_with_escaped_slashes_action: REJECT_REQUEST
{{- /* One id from client to log; its digits are the client's own and stay as they are. */}}
generate_request_id: true
preserve_external_request_id: true
always_set_request_id_in_response: true
request_id_extension:
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig
    pack_trace_reason: false
stream_idle_timeout: {{ $policy.timeouts.streamIdleSeconds }}s
{{- /* After a cut stream Envoy would hold the connection open for 1 s in which the client learns nothing. */}}
delayed_close_timeout: 0.1s
request_headers_timeout: 10s
common_http_protocol_options:
  idle_timeout: {{ $root.Values.router.clientIdleTimeoutSeconds }}s
http2_protocol_options:
  max_concurrent_streams: 1000
  initial_stream_window_size: 65536
  initial_connection_window_size: 1048576
access_log:
  - name: envoy.access_loggers.stdout
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog
      log_format:
        {{- /* No bodies, no credentials, no query string. */}}
        json_format:
          time: "%START_TIME(%Y-%m-%dT%H:%M:%S.%6fZ)%"
          request_id: "%REQ(X-REQUEST-ID)%"
          method: "%REQ(:METHOD)%"
          path: "%PATH(NQ:PATH)%"
          status: "%RESPONSE_CODE%"
          flags: "%RESPONSE_FLAGS%"
          duration_ms: "%DURATION%"
          ttfb_ms: "%RESPONSE_DURATION%"
          bytes_out: "%BYTES_SENT%"
          upstream: "%UPSTREAM_HOST%"
          attempts: "%UPSTREAM_REQUEST_ATTEMPT_COUNT%"
          hosts_attempted: "%UPSTREAM_HOSTS_ATTEMPTED%"
          router: "%ENVIRONMENT(POD_NAME)%"
          listener: {{ $listener }}
http_filters:
  - name: envoy.filters.http.router
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
      suppress_envoy_headers: true
{{- end -}}

{{/*
What happens to an admitted request. Call: include "llm-replicas.envoyRoute" (dict "policy" $policy "cluster" "replicas-http")
*/}}
{{- define "llm-replicas.envoyRoute" -}}
{{- $policy := .policy -}}
cluster: {{ .cluster }}
{{- /* Envoy would end every answer after 15 s. */}}
timeout: 0s
idle_timeout: {{ $policy.timeouts.streamIdleSeconds }}s
{{- if gt (int $policy.retries.attempts) 0 }}
retry_policy:
  {{- /* All of these mean that no byte of an answer arrived. gRPC's `unavailable` is not among them:
         Triton uses it for refusals too, and a refusal must not be multiplied. */}}
  retry_on: connect-failure,refused-stream,reset-before-request,reset
  num_retries: {{ $policy.retries.attempts }}
  retry_host_predicate:
    - name: envoy.retry_host_predicates.previous_hosts
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate
  host_selection_retry_max_attempts: 10
  retry_back_off: {base_interval: 0.025s, max_interval: 0.25s}
{{- end }}
{{- end -}}

{{/*
The replicas, over one protocol. Call: include "llm-replicas.envoyCluster" (dict "root" $ "policy" $policy "protocol" "http" "port" 8000)
*/}}
{{- define "llm-replicas.envoyCluster" -}}
{{- $root := .root -}}
{{- $policy := .policy -}}
{{- $discovery := $root.Values.router.discovery -}}
name: replicas-{{ .protocol }}
connect_timeout: {{ $policy.timeouts.connectSeconds }}s
lb_policy: {{ get (dict "leastRequest" "LEAST_REQUEST" "roundRobin" "ROUND_ROBIN") $policy.strategy }}
cluster_type:
  name: envoy.clusters.dns
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.clusters.dns.v3.DnsCluster
    dns_refresh_rate: {{ $discovery.refreshSeconds }}s
    dns_failure_refresh_rate: {base_interval: {{ $discovery.refreshSeconds }}s, max_interval: {{ $discovery.refreshSeconds }}s}
    respect_dns_ttl: false
    dns_lookup_family: {{ ternary "V6_ONLY" "V4_ONLY" (eq $discovery.addressFamily "ipv6") }}
    typed_dns_resolver_config:
      name: envoy.network.dns_resolver.cares
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig
        {{- /* A lost datagram must not cost more than the refresh. */}}
        query_timeout_seconds: 1
        query_tries: 3
        dns_resolver_options: {no_default_search_domain: true}
load_assignment:
  cluster_name: replicas-{{ .protocol }}
  endpoints:
    - lb_endpoints:
        - endpoint:
            address:
              socket_address:
                address: {{ include "llm-replicas.fullname" $root }}-replicas.{{ $root.Release.Namespace }}.svc.{{ $root.Values.clusterDomain }}
                port_value: {{ .port }}
            {{- /* Both protocols are checked over HTTP: Triton's ready answer covers both, and gRPC health would need a second endpoint. */}}
            health_check_config: {port_value: 8000}
{{- /* A withdrawn replica is forgotten at once, together with its idle connections and its checks: nothing of ours then holds its shutdown. */}}
ignore_health_on_host_removal: true
common_lb_config:
  {{- /* Never send to replicas known to be dead, however few are left: at 50 % (Envoy's default) two dead of three would get traffic. */}}
  healthy_panic_threshold: {value: 0}
health_checks:
  - interval: {{ $policy.healthCheck.intervalSeconds }}s
    no_traffic_interval: {{ $policy.healthCheck.intervalSeconds }}s
    timeout: {{ $policy.healthCheck.timeoutSeconds }}s
    unhealthy_threshold: {{ $policy.healthCheck.failures }}
    healthy_threshold: 1
    http_health_check: {path: {{ $policy.healthCheck.path }}}
outlier_detection:
  interval: 1s
  base_ejection_time: {{ $policy.ejection.baseSeconds }}s
  max_ejection_time: {{ mul 10 $policy.ejection.baseSeconds }}s
  {{- /* Refused and reset connections are counted apart from a model's own 5xx. Envoy has one ceiling for both,
         so the last replica is never ejected, whatever it does: the health check judges it. */}}
  max_ejection_percent: {{ $policy.ejection.maxPercent }}
  split_external_local_origin_errors: true
  consecutive_local_origin_failure: {{ $policy.ejection.consecutiveFailures }}
  enforcing_consecutive_local_origin_failure: 100
  consecutive_5xx: {{ $policy.ejection.consecutiveErrors }}
  enforcing_consecutive_5xx: 100
  enforcing_consecutive_gateway_failure: 0
  enforcing_success_rate: 0
  enforcing_local_origin_success_rate: 0
circuit_breakers:
  thresholds:
    - priority: DEFAULT
      max_connections: {{ $policy.maxParallelRequests }}
      max_pending_requests: {{ $policy.maxParallelRequests }}
      max_requests: {{ $policy.maxParallelRequests }}
      retry_budget:
        budget_percent: {value: {{ $policy.retries.budgetPercent }}}
        min_retry_concurrency: {{ $policy.retries.minConcurrent }}
upstream_connection_options:
  tcp_keepalive:
    keepalive_time: {{ $policy.timeouts.keepaliveIdleSeconds }}
    keepalive_interval: 1
    keepalive_probes: {{ $policy.timeouts.keepaliveProbes }}
upstream_bind_config:
  socket_options:
    {{- /* Keepalive does not act while data waits for an acknowledgement; this does. */}}
    - description: TCP_USER_TIMEOUT
      level: 6
      name: 18
      int_value: {{ mul 1000 $policy.timeouts.deadPeerSeconds }}
      state: STATE_PREBIND
typed_extension_protocol_options:
  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
    "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
    common_http_protocol_options:
      idle_timeout: {{ $policy.timeouts.upstreamIdleSeconds }}s
    explicit_http_config:
      {{- if eq .protocol "grpc" }}
      http2_protocol_options: {}
      {{- else }}
      http_protocol_options: {}
      {{- end }}
{{- end -}}
