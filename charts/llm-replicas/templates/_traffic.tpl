{{/*
What should happen to a request, said once and without any proxy's words. Every renderer
(today: the router) reads this; what it cannot do, requirements.yaml refuses by name.
Call: include "llm-replicas.trafficPolicy" $ | fromYaml
*/}}
{{- define "llm-replicas.trafficPolicy" -}}
{{- $traffic := .Values.traffic -}}
{{- $times := include "llm-replicas.times" . | fromYaml -}}
{{- $replicas := int .Values.replicas -}}
{{- $names := list -}}
{{- range $name := .Values.model.names -}}
  {{- $names = append $names (regexReplaceAll "([^A-Za-z0-9_-])" $name "\\${1}") -}}
{{- end -}}
strategy: {{ $traffic.strategy }}
routes:
  {{- /* Exact shapes. Everything else (repository control, shared memory, traces, logging, configuration,
         statistics, metadata, health) is answered 404 at the edge and never reaches a replica. */}}
  http:
    method: POST
    pathRegex: {{ printf "/v2/models/(%s)(/versions/[0-9]+)?/(infer|generate|generate_stream)" (join "|" $names) | quote }}
  grpc:
    paths:
      - /inference.GRPCInferenceService/ModelInfer
      - /inference.GRPCInferenceService/ModelStreamInfer
timeouts:
  connectSeconds: {{ $traffic.connectTimeoutSeconds }}
  streamIdleSeconds: {{ $traffic.streamIdleTimeoutSeconds }}
  upstreamIdleSeconds: {{ $times.upstreamIdleSeconds }}
  deadPeerSeconds: {{ $traffic.deadPeerSeconds }}
  keepaliveIdleSeconds: {{ $times.keepaliveIdleSeconds }}
  keepaliveProbes: {{ $times.keepaliveProbes }}
retries:
  attempts: {{ $traffic.retries.attempts }}
  budgetPercent: {{ $traffic.retries.budgetPercent }}
  minConcurrent: {{ $traffic.retries.minConcurrent }}
healthCheck:
  path: /v2/health/ready
  intervalSeconds: {{ $traffic.healthCheck.intervalSeconds }}
  timeoutSeconds: {{ $traffic.healthCheck.timeoutSeconds }}
  failures: {{ $traffic.healthCheck.failures }}
ejection:
  consecutiveFailures: {{ $traffic.ejection.consecutiveFailures }}
  consecutiveErrors: {{ $traffic.ejection.consecutiveErrors }}
  baseSeconds: {{ $traffic.ejection.baseSeconds }}
  {{- /* The whole percent that lets N-1 of N go and never the last one: an ejection is allowed while
         (ejected + 1) / N stays within it, so it must be rounded up. */}}
  maxPercent: {{ div (add (mul 100 (sub $replicas 1)) (sub $replicas 1)) $replicas }}
maxParallelRequests: {{ $traffic.maxParallelRequests }}
{{- end -}}
