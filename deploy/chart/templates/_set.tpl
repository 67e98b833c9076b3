{{/*
A DaemonSet of the base with the values in it, as YAML. Takes the name of its file, and the root.
*/}}
{{- define "egress.set" -}}
{{- $values := .root.Values -}}
{{- $set := .root.Files.Get (printf "base/%s" .file) | fromYaml -}}
{{- $template := $set.spec.template -}}
{{- $pod := $template.spec -}}
{{- $container := index $pod.containers 0 -}}
{{- with $values.image -}}
{{-   $tag := printf ":%s" (.tag | default $.root.Chart.AppVersion) -}}
{{-   if .digest -}}{{- $tag = printf "@%s" .digest -}}{{- end -}}
{{-   $_ := set $container "image" (printf "%s%s" .repository $tag) -}}
{{-   $_ := set $container "imagePullPolicy" .pullPolicy -}}
{{- end -}}
{{- range $name := list "imagePullSecrets" "nodeSelector" "tolerations" "affinity" "priorityClassName" -}}
{{-   with index $values $name -}}{{- $_ := set $pod $name . -}}{{- end -}}
{{- end -}}
{{- with $values.securityContext -}}{{- $_ := set $container "securityContext" . -}}{{- end -}}
{{- $annotations := deepCopy ($values.podAnnotations | default dict) -}}
{{- /* Servers before 1.30 know AppArmor's profile as an annotation alone. */ -}}
{{- if semverCompare "<1.30.0-0" .root.Capabilities.KubeVersion.Version -}}
{{-   with $container.securityContext.appArmorProfile -}}
{{-     $key := printf "container.apparmor.security.beta.kubernetes.io/%s" $container.name -}}
{{-     if eq .type "Localhost" -}}
{{-       $_ := set $annotations $key (printf "localhost/%s" .localhostProfile) -}}
{{-     else -}}
{{-       $_ := set $annotations $key (index (dict "Unconfined" "unconfined" "RuntimeDefault" "runtime/default") .type) -}}
{{-     end -}}
{{-     $_ := unset $container.securityContext "appArmorProfile" -}}
{{-   end -}}
{{- end -}}
{{- with $annotations -}}{{- $_ := set $template.metadata "annotations" . -}}{{- end -}}
{{- if eq .file "daemonset.yaml" -}}
{{-   $args := $container.args -}}
{{-   with $values.lifelineCidrs -}}
{{- /* Those of the base, each behind its flag, make room. */ -}}
{{-     $kept := list -}}
{{-     $isRange := false -}}
{{-     range $args -}}
{{-       if eq . "--lifeline-cidr" -}}{{- $isRange = true -}}
{{-       else if $isRange -}}{{- $isRange = false -}}
{{-       else -}}{{- $kept = append $kept . -}}
{{-       end -}}
{{-     end -}}
{{-     range . -}}{{- $kept = concat $kept (list "--lifeline-cidr" .) -}}{{- end -}}
{{-     $args = $kept -}}
{{-   end -}}
{{-   $_ := set $container "args" (concat $args ($values.extraArgs | default list)) -}}
{{-   with $values.resources -}}{{- $_ := set $container "resources" . -}}{{- end -}}
{{-   with $values.maxUnavailable -}}{{- $_ := set $set.spec.updateStrategy.rollingUpdate "maxUnavailable" . -}}{{- end -}}
{{- end -}}
{{- toYaml $set -}}
{{- end -}}
