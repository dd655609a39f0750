{{/*
Version of tritonserver in the replica image, or empty when it cannot be known.
Call: include "llm-replicas.serverVersion" $
*/}}
{{- define "llm-replicas.serverVersion" -}}
{{- $server := .Files.Get "files/triton-server.yaml" | fromYaml -}}
{{- $release := regexFind "^[0-9]{2}\\.[0-9]{2}" .Values.image.tag -}}
{{- .Values.image.serverVersion | default (get $server.releases $release) -}}
{{- end -}}

{{/*
The flags that the chart computes, as a YAML map of name to value. `drainSeconds` is the exit
timeout: how long the server lets requests in flight end after SIGTERM.
Call: include "llm-replicas.serverFlags" $ | fromYaml
*/}}
{{- define "llm-replicas.serverFlags" -}}
{{- $values := .Values -}}
{{- $server := .Files.Get "files/triton-server.yaml" | fromYaml -}}
{{- $version := include "llm-replicas.serverVersion" . -}}
model-repository: {{ $values.model.path | quote }}
http-port: "8000"
grpc-port: "8001"
metrics-port: "8002"
exit-timeout-secs: {{ $values.lifecycle.drainSeconds | quote }}
exit-on-error: "true"
strict-readiness: "true"
{{- /* No model can be loaded, replaced or unloaded at run time. */}}
model-control-mode: none
disable-auto-complete-config: ""
allow-sagemaker: "false"
allow-vertex-ai: "false"
allow-gpu-metrics: {{ ne $values.gpu.mode "none" | quote }}
{{- /* Off by default in the server too; stated where the version has the flag. */}}
{{- if and $version (semverCompare (printf ">=%s" (get $server.since "allow-client-shm")) $version) }}
allow-client-shm: "false"
{{- end }}
{{- end -}}

{{/*
All arguments of the server, as a YAML list. Call: include "llm-replicas.serverArgs" $
*/}}
{{- define "llm-replicas.serverArgs" -}}
{{- $flags := merge (include "llm-replicas.serverFlags" . | fromYaml) .Values.serverFlags -}}
{{- $args := list -}}
{{- range $name := keys $flags | sortAlpha -}}
  {{- /* A flag that is a switch takes no value: tritonserver refuses "=true" there. */}}
  {{- $value := get $flags $name -}}
  {{- $args = append $args (ternary (printf "--%s" $name) (printf "--%s=%s" $name $value) (empty $value)) -}}
{{- end -}}
{{- toYaml $args -}}
{{- end -}}

{{/*
Where the model repository comes from, taken apart: `claim` is empty when it is baked into the image.
Call: include "llm-replicas.modelSource" .Values.model.source | fromYaml
*/}}
{{- define "llm-replicas.modelSource" -}}
{{- $source := . -}}
{{- $form := "^pvc://([a-z0-9][-a-z0-9.]*)(/(.+))?$" -}}
{{- if regexMatch $form $source -}}
claim: {{ regexReplaceAll $form $source "${1}" }}
subPath: {{ regexReplaceAll $form $source "${3}" | trimSuffix "/" | quote }}
{{- else -}}
claim: ""
{{- end -}}
{{- end -}}
