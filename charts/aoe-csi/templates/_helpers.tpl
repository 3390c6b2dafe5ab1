{{/* The driver's name is part of every volume on disk and in the cluster; it is not configurable. */}}
{{- define "aoe-csi.driver" -}}driver.aoe-csi.io{{- end -}}

{{- define "aoe-csi.name" -}}
{{- if contains .Chart.Name .Release.Name -}}{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else -}}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}{{- end -}}
{{- end -}}

{{- define "aoe-csi.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{/* Called with (dict "root" $ "component" "node"). */}}
{{- define "aoe-csi.selectorLabels" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "aoe-csi.labels" -}}
{{ include "aoe-csi.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{/* What the pods of all components share. Called with (dict "root" $ "values" .Values.node). */}}
{{- define "aoe-csi.scheduling" -}}
priorityClassName: {{ .values.priorityClassName }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "aoe-csi.nodeName" -}}
- name: NODE_NAME
  valueFrom:
    fieldRef:
      fieldPath: spec.nodeName
{{- end -}}

{{/* Alive is a process that answers CSI's Probe at all; being ready is not asked, because a restart would not help it. */}}
{{- define "aoe-csi.csiLiveness" -}}
exec:
  command: [/aoe-csi, probe, --endpoint=unix:///csi/csi.sock]
initialDelaySeconds: 30
periodSeconds: 60
timeoutSeconds: 20
failureThreshold: 3
{{- end -}}

{{- define "aoe-csi.unprivileged" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* The numbers of "9-11,20", or of a number, with commas between. */}}
{{- define "aoe-csi.numbers" -}}
{{- $text := kindIs "string" . | ternary . (int . | toString) -}}
{{- $all := list -}}
{{- range splitList "," $text -}}
{{- $ends := splitList "-" . -}}
{{- if or (gt (atoi (first $ends)) (atoi (last $ends))) (gt (atoi (last $ends)) 65534) -}}
{{- fail (printf "pools: %q is no range of shelves, which have the numbers 0 to 65534" $text) -}}
{{- end -}}
{{- if gt (sub (atoi (last $ends)) (atoi (first $ends))) 63 -}}
{{- fail (printf "pools: %q are too many shelves; one entry may have 64" $text) -}}
{{- end -}}
{{- range untilStep (atoi (first $ends)) (add1 (atoi (last $ends)) | int) 1 -}}
{{- $all = append $all (toString .) -}}
{{- end -}}
{{- end -}}
{{- if gt (len $all) 64 -}}
{{- fail (printf "pools: %q are %d shelves; one entry may have 64" $text (len $all)) -}}
{{- end -}}
{{- join "," $all -}}
{{- end -}}

{{/* What a pool is called: in the label of its shelves, and after "aoe-" its StorageClass. */}}
{{- define "aoe-csi.poolName" -}}
{{- if regexMatch "^shelf-[0-9]" (.name | default "") -}}
{{- fail (printf "pools: the name %q is that of a pool without a name" .name) -}}
{{- end -}}
{{- $shelf := kindIs "string" .shelf | ternary .shelf (int .shelf | toString) -}}
{{- .name | default (printf "shelf-%s" ($shelf | replace "," "-")) | trunc 59 | trimSuffix "-" -}}
{{- end -}}
