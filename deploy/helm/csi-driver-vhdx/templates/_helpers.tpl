{{/* Labels of every object. */}}
{{- define "labels" -}}
app.kubernetes.io/name: csi-driver-vhdx
app.kubernetes.io/part-of: csi-driver-vhdx
{{- end }}

{{/* The driver's image. */}}
{{- define "image" -}}
{{- with .Values.image -}}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{/* The --pool flags. */}}
{{- define "poolArgs" -}}
{{- range .Values.pools }}
- --pool={{ join "," (prepend (.options | default list) (printf "%s=/pools/%s" .name .name)) }}
{{- end }}
{{- end }}

{{/* Where the pools are mounted. */}}
{{- define "poolMounts" -}}
{{- range .Values.pools }}
- name: pool-{{ .name }}
  mountPath: /pools/{{ .name }}
  # What the node mounts there later, or again, is seen here too.
  mountPropagation: HostToContainer
{{- end }}
{{- end }}

{{/* The pools as volumes of a pod. */}}
{{- define "poolVolumes" -}}
{{- range .Values.pools }}
- name: pool-{{ .name }}
  {{- if .persistentVolume }}
  persistentVolumeClaim:
    claimName: vhdx-csi-pool-{{ .name }}
  {{- else }}
  {{- toYaml .volume | nindent 2 }}
  {{- end }}
{{- end }}
{{- end }}

{{/* A sidecar of the controller, from (dict "root" $ "name" NAME "key" KEY "args" LIST). */}}
{{- define "sidecar" -}}
{{- $sidecar := get .root.Values.sidecars .key -}}
- name: {{ .name }}
  image: {{ $sidecar.image }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  args:
    - --csi-address=/csi/csi.sock
    - --leader-election
    - --leader-election-namespace=$(NAMESPACE)
    - --timeout={{ .root.Values.sidecars.timeout }}
    - --v={{ .root.Values.logLevel }}
    {{- range concat .args $sidecar.extraArgs }}
    - {{ . }}
    {{- end }}
  env:
    - name: NAMESPACE
      valueFrom:
        fieldRef:
          fieldPath: metadata.namespace
    - name: POD_NAME
      valueFrom:
        fieldRef:
          fieldPath: metadata.name
  {{- include "confined" . | nindent 2 }}
  volumeMounts:
    - name: socket
      mountPath: /csi
  terminationMessagePolicy: FallbackToLogsOnError
  resources:
    {{- toYaml .root.Values.sidecars.resources | nindent 4 }}
{{- end }}

{{/* What a container that needs nothing gets. */}}
{{- define "confined" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end }}

{{/* Role and bindings of a sidecar, from (dict "root" $ "name" NAME). The rules
     of the ClusterRole and of the Role follow each where this is used. */}}
{{- define "bindings" -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: vhdx-csi-{{ .name }}
  labels:
    {{- include "labels" .root | nindent 4 }}
subjects:
  - kind: ServiceAccount
    name: vhdx-csi-controller
    namespace: {{ .root.Release.Namespace }}
roleRef:
  kind: ClusterRole
  name: vhdx-csi-{{ .name }}
  apiGroup: rbac.authorization.k8s.io
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: vhdx-csi-{{ .name }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "labels" .root | nindent 4 }}
subjects:
  - kind: ServiceAccount
    name: vhdx-csi-controller
    namespace: {{ .root.Release.Namespace }}
roleRef:
  kind: Role
  name: vhdx-csi-{{ .name }}
  apiGroup: rbac.authorization.k8s.io
{{- end }}

{{/* What electing a leader takes. */}}
{{- define "electionRules" -}}
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [get, create, update]
# Who leads is told as an event of the lease.
- apiGroups: [""]
  resources: [events]
  verbs: [create, patch]
{{- end }}
