{{/*
Security of a pod, as Pod Security `restricted` wants it. Call: include "llm-replicas.podSecurity" (dict "uid" 1000)
*/}}
{{- define "llm-replicas.podSecurity" -}}
{{- $uid := .uid -}}
runAsNonRoot: true
runAsUser: {{ $uid }}
runAsGroup: {{ $uid }}
fsGroup: {{ $uid }}
{{- /* Walking a model repository of 100 GB to change owners would take longer than loading it. */}}
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/*
Security of a container. Call: include "llm-replicas.containerSecurity" dict
*/}}
{{- define "llm-replicas.containerSecurity" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/*
Spreads the pods of a component over nodes and zones. Soft, because a fleet that fits on fewer nodes
must still start. Call: include "llm-replicas.spread" (dict "root" $ "component" "replica")
*/}}
{{- define "llm-replicas.spread" -}}
{{- $labels := include "llm-replicas.selectorLabels" . -}}
affinity:
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        podAffinityTerm:
          topologyKey: kubernetes.io/hostname
          labelSelector:
            matchLabels: {{- $labels | nindent 14 }}
topologySpreadConstraints:
  {{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: ScheduleAnyway
    {{- /* Counts each revision alone, so that a rollout ends as evenly spread as it began. */}}
    matchLabelKeys: [pod-template-hash]
    labelSelector:
      matchLabels: {{- $labels | nindent 8 }}
  {{- end }}
{{- end -}}

{{/*
Tolerations for a lost node: without them Kubernetes waits 300 s before a pod moves.
Call: include "llm-replicas.nodeLossTolerations" (dict "root" $)
*/}}
{{- define "llm-replicas.nodeLossTolerations" -}}
{{- $root := .root -}}
{{- $seconds := $root.Values.lifecycle.nodeLossTolerationSeconds -}}
- {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: {{ $seconds }}}
- {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: {{ $seconds }}}
{{- end -}}

{{/*
Registry credentials by name. Call: include "llm-replicas.pullSecrets" .Values.image.pullSecrets
*/}}
{{- define "llm-replicas.pullSecrets" -}}
{{- $names := . -}}
{{- range $index, $name := $names }}
{{- if $index }}
{{ end -}}
- name: {{ $name }}
{{- end }}
{{- end -}}
