{{- /* Name of all objects of the release. Unlike a release's, a Service's name has no dots and begins with a letter. */ -}}
{{- define "wrpo.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := ternary $name (printf "%s-%s" .Release.Name $name) (contains .Release.Name $name) -}}
{{- $full = default $full .Values.fullnameOverride | replace "." "-" -}}
{{- if not (regexMatch "^[a-z]" $full) -}}
{{- $full = printf "x%s" $full -}}
{{- end -}}
{{- $full | trunc 50 | trimAll "-" -}}
{{- end -}}

{{- define "wrpo.serviceAccount" -}}
{{- default (include "wrpo.fullname" .) .Values.serviceAccount.name -}}
{{- end -}}

{{- define "wrpo.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "wrpo.labels" -}}
{{ include "wrpo.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "wrpo.watchNamespace" -}}
{{- if eq .Values.mode "namespaced" -}}
{{- default .Release.Namespace .Values.watchNamespace -}}
{{- end -}}
{{- end -}}

{{- define "wrpo.image" -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}

{{- /* Whether the progress endpoint uses TLS; empty if not. */ -}}
{{- define "wrpo.tls" -}}
{{- if and .Values.progress.enabled .Values.progress.tls.enabled -}}true{{- end -}}
{{- end -}}

{{- define "wrpo.progressHost" -}}
{{- printf "%s.%s.svc" (include "wrpo.fullname" .) .Release.Namespace -}}
{{- end -}}

{{- define "wrpo.progressUrl" -}}
{{- printf "%s://%s:%v" (ternary "https" "http" (eq (include "wrpo.tls" .) "true")) (include "wrpo.progressHost" .) .Values.progress.port -}}
{{- end -}}

{{- define "wrpo.tlsSecret" -}}
{{- default (printf "%s-progress-tls" (include "wrpo.fullname" .)) .Values.progress.tls.existingSecret -}}
{{- end -}}

{{- /* Sets progress.tls.made to {ca, cert, key} (base64), once for all templates: the stored certificate, else a new one. */ -}}
{{- define "wrpo.makeCertificate" -}}
{{- if not (hasKey .Values.progress.tls "made") -}}
{{- $stored := (lookup "v1" "Secret" .Release.Namespace (include "wrpo.tlsSecret" .)).data | default dict -}}
{{- if and (index $stored "ca.crt") (index $stored "tls.crt") (index $stored "tls.key") -}}
{{- $_ := set .Values.progress.tls "made" (dict "ca" (index $stored "ca.crt") "cert" (index $stored "tls.crt") "key" (index $stored "tls.key")) -}}
{{- else -}}
{{- $host := include "wrpo.progressHost" . -}}
{{- $days := int .Values.progress.tls.validityDays -}}
{{- $ca := genCA (printf "%s-progress" (include "wrpo.fullname" .)) $days -}}
{{- $signed := genSignedCert $host nil (list $host (printf "%s.cluster.local" $host)) $days $ca -}}
{{- $_ := set .Values.progress.tls "made" (dict "ca" (b64enc $ca.Cert) "cert" (b64enc $signed.Cert) "key" (b64enc $signed.Key)) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* Whether a source of accelerators is read, given its value and the chart's: `true`, or empty. */ -}}
{{- define "wrpo.reads" -}}
{{- $wanted := ternary (eq .context.Values.mode "cluster") .value (eq (toString .value) "auto") -}}
{{- if and .context.Values.accelerators.enabled $wanted -}}true{{- end -}}
{{- end -}}

{{- define "wrpo.readNodes" -}}
{{- include "wrpo.reads" (dict "value" .Values.accelerators.readNodes "context" .) -}}
{{- end -}}

{{- define "wrpo.readQueues" -}}
{{- include "wrpo.reads" (dict "value" .Values.accelerators.readQueues "context" .) -}}
{{- end -}}

{{- /* Rights of the operator in namespaces of experiments. Every verb is used; no verb reads Secrets. */ -}}
{{- define "wrpo.rules" -}}
# One is read alone when its status was written by somebody else in between.
- apiGroups: [wrpo.ai]
  resources: [wrpoexperiments, wrposweeps]
  verbs: [get, list, watch]
- apiGroups: [wrpo.ai]
  resources: [wrpoexperiments/status, wrposweeps/status]
  verbs: [patch]
# The experiments of a sweep.
- apiGroups: [wrpo.ai]
  resources: [wrpoexperiments]
  verbs: [create, patch, delete]
# Owner references with blockOwnerDeletion need this where the OwnerReferencesPermissionEnforcement plugin is on.
- apiGroups: [wrpo.ai]
  resources: [wrpoexperiments/finalizers, wrposweeps/finalizers]
  verbs: [update]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [list, watch, create, patch, delete]
{{- range (.Files.Get "files/backends.yaml" | fromYaml).backends }}
{{- $backend := . }}
- apiGroups: [{{ .group }}]
  resources: [{{ .plural }}]
  verbs: [list, watch, create, patch, delete]
{{- range .companions }}
# Each {{ $backend.kind }} comes with one of its own; it is never read.
- apiGroups: [{{ .group }}]
  resources: [{{ .plural }}]
  verbs: [create, patch]
{{- end }}
{{- end }}
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
# Stage configurations: server-side apply of immutable ConfigMaps, never read.
- apiGroups: [""]
  resources: [configmaps]
  verbs: [create, patch]
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get]
# Events of children whose pods the API server refuses, and of pods that their nodes cannot start, say why.
- apiGroups: [""]
  resources: [events]
  verbs: [get, list, create, patch]
# Kueue's Workloads say why a child has not been admitted. Without Kueue the rule grants nothing.
- apiGroups: [kueue.x-k8s.io]
  resources: [workloads]
  verbs: [list]
{{- if include "wrpo.readQueues" . }}
# The queue of an experiment: where its ClusterQueue is named.
- apiGroups: [kueue.x-k8s.io]
  resources: [localqueues]
  verbs: [get]
{{- end }}
# scheduling.podGroup. Without Volcano or scheduler-plugins the rule grants nothing.
- apiGroups: [scheduling.volcano.sh, scheduling.x-k8s.io]
  resources: [podgroups]
  verbs: [create, patch]
{{- end -}}


{{- /* A list of strings in CEL, without trailing slashes. The schema allows no quotes. */ -}}
{{- define "wrpo.celStrings" -}}
[{{ range $index, $value := . }}{{ if $index }}, {{ end }}'{{ trimSuffix "/" $value }}'{{ end }}]
{{- end -}}
