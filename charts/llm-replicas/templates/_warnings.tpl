{{/*
What an operator should know about the values given: everything that was loosened, as a YAML list.
Call: include "llm-replicas.warnings" $ | fromYamlArray
*/}}
{{- define "llm-replicas.warnings" -}}
{{- $values := .Values -}}
{{- $server := .Files.Get "files/triton-server.yaml" | fromYaml -}}
{{- $version := include "llm-replicas.serverVersion" . -}}
{{- $warnings := list -}}
{{- if $values.lifecycle.acceptDroppedRequests -}}
  {{- $warnings = append $warnings "lifecycle.acceptDroppedRequests is true: rollouts and deletes may fail or cut requests." -}}
{{- end -}}
{{- if contains "standin" $values.image.repository -}}
  {{- $warnings = append $warnings "The image is the stand-in: its answers and its speed are simulated. It proves wiring and failover, never a model's performance or the server's hardening." -}}
{{- else if eq $values.gpu.mode "none" -}}
  {{- $warnings = append $warnings "gpu.mode is none: replicas run on CPUs." -}}
{{- end -}}
{{- if semverCompare (printf "<%s" $server.floors.trtllm.version) $version -}}
  {{- $warnings = append $warnings (printf "tritonserver %s lacks security fixes up to %s (%s): keep it away from callers you do not trust." $version $server.floors.trtllm.version $server.floors.trtllm.reason) -}}
{{- end -}}
{{- if lt (int $values.replicas) 2 -}}
  {{- $warnings = append $warnings "replicas is 1: nothing serves while that replica is lost, and no PodDisruptionBudget protects it." -}}
{{- end -}}
{{- if not $values.router.enabled -}}
  {{- $warnings = append $warnings (printf "router.enabled is false: health checks, ejection, retries, drains and the list of allowed paths are up to your own gateway. It must reach the pods of Service %s-replicas directly and must not expose Triton's other paths." (include "llm-replicas.fullname" .)) -}}
{{- else -}}
  {{- if lt (int $values.router.replicas) 2 -}}
    {{- $warnings = append $warnings "router.replicas is 1: nothing serves while that router is lost." -}}
  {{- end -}}
  {{- if eq (int $values.traffic.retries.attempts) 0 -}}
    {{- $warnings = append $warnings "traffic.retries.attempts is 0: a lost replica fails requests until health checks take it out." -}}
  {{- end -}}
  {{- if $values.router.responseHeaders -}}
    {{- $warnings = append $warnings "router.responseHeaders is true: callers see pod addresses." -}}
  {{- end -}}
{{- end -}}
{{- if not $values.podDisruptionBudget.enabled -}}
  {{- $warnings = append $warnings "podDisruptionBudget.enabled is false: a node drain may take all replicas at once." -}}
{{- end -}}
{{- toYaml $warnings -}}
{{- end -}}
