{{/*
Prefix of every object name. Shortened to 50 characters so that the longest suffix still fits
into the 63 of a Service. Call: include "llm-replicas.fullname" $
*/}}
{{- define "llm-replicas.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := .Values.fullnameOverride -}}
{{- if not $full -}}
  {{- $full = ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- end -}}
{{- $full | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{/*
Labels that select the pods of a component. They never change: a Deployment's selector is immutable.
Call: include "llm-replicas.selectorLabels" (dict "root" $ "component" "replica")
*/}}
{{- define "llm-replicas.selectorLabels" -}}
{{- $root := .root -}}
{{- $component := .component -}}
app.kubernetes.io/name: llm-replicas
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ $component }}
{{- end -}}

{{/*
Labels of an object of a component. Not for pod templates: the chart version among them would
roll every pod with every chart release.
Call: include "llm-replicas.labels" (dict "root" $ "component" "replica")
*/}}
{{- define "llm-replicas.labels" -}}
{{- $root := .root -}}
{{ include "llm-replicas.selectorLabels" . }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
app.kubernetes.io/version: {{ include "llm-replicas.serverVersion" $root | default "unknown" | quote }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name ($root.Chart.Version | replace "+" "_") }}
{{- end -}}

{{/*
An image reference; the digest wins and the tag then stays as a comment for people.
Call: include "llm-replicas.image" .Values.image
*/}}
{{- define "llm-replicas.image" -}}
{{- $image := . -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag }}
{{- end -}}
{{- end -}}

{{/*
ServiceAccount of a component. Call: include "llm-replicas.serviceAccountName" (dict "root" $ "component" "replica")
*/}}
{{- define "llm-replicas.serviceAccountName" -}}
{{- $root := .root -}}
{{- $component := .component -}}
{{- if $root.Values.serviceAccount.create -}}
{{ include "llm-replicas.fullname" $root }}-{{ $component }}
{{- else -}}
{{ default "default" $root.Values.serviceAccount.name }}
{{- end -}}
{{- end -}}
