{{/*
Every time that follows from the operator's decisions, computed in one place.
Call: include "llm-replicas.times" $ | fromYaml
*/}}
{{- define "llm-replicas.times" -}}
{{- $lifecycle := .Values.lifecycle -}}
{{- $router := .Values.router -}}
{{- $discoverySeconds := add1 (add $router.discovery.dnsTtlSeconds $router.discovery.refreshSeconds) -}}
{{- $upstreamIdleSeconds := min 30 (max 1 (div $lifecycle.drainSeconds 2)) -}}
{{- $deadPeerProbes := 3 -}}
{{- /* The longest a router may need to see a change of the replicas' DNS name, with 1 s of margin. */}}
discoverySeconds: {{ $discoverySeconds }}
{{- /* 10 s on top: the server sweeps in 1 s steps, and the kubelet needs time to see the exit. */}}
replicaGraceSeconds: {{ add $lifecycle.endpointWithdrawalSeconds $lifecycle.drainSeconds 10 }}
routerGraceSeconds: {{ add $router.endpointWithdrawalSeconds $router.drainSeconds 10 }}
startupFailures: {{ max 1 (div (add $lifecycle.startupBudgetSeconds (sub $lifecycle.startupPeriodSeconds 1)) $lifecycle.startupPeriodSeconds) }}
{{- /* Kubernetes calls a rollout failed after this long without progress: loading is progress. */}}
progressDeadlineSeconds: {{ add $lifecycle.startupBudgetSeconds $discoverySeconds 300 }}
{{- /* A new replica counts as available only when every router has had time to find it; until then no old one leaves. */}}
minReadySeconds: {{ $discoverySeconds }}
{{- /* Shorter than the drain, so that an idle connection of ours never holds a terminating server for all of it. */}}
upstreamIdleSeconds: {{ $upstreamIdleSeconds }}
keepaliveIdleSeconds: {{ sub .Values.traffic.deadPeerSeconds $deadPeerProbes }}
keepaliveProbes: {{ $deadPeerProbes }}
{{- end -}}
