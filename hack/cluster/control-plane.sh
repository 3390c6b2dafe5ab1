# shellcheck shell=bash
# Sourced by cluster.sh: etcd, API server, controller manager and scheduler as processes of this machine, in the namespace.

CERTS=$STATE/certs

# background NAME COMMAND…: starts COMMAND in the namespace, with a log and a pid file.
background() {
  local name=$1; shift
  setsid ip netns exec $NETNS "$@" >"$LOGS/$name.log" 2>&1 </dev/null &
  echo $! >"$PIDS/$name"
  disown # its end is no news to this shell
}

# credentials makes what is made once: the key of service account tokens and a token for everyone.
credentials() {
  mkdir -p "$CERTS"
  if [ ! -s "$CERTS/sa.key" ]; then
    openssl genrsa -out "$CERTS/sa.key" 2048 2>/dev/null
    openssl rsa -in "$CERTS/sa.key" -pubout -out "$CERTS/sa.pub" 2>/dev/null
  fi
  local n
  {
    echo "$(token admin),admin,admin,\"system:masters\""
    echo "$(token manager),system:kube-controller-manager,manager"
    echo "$(token scheduler),system:kube-scheduler,scheduler"
    for n in 1 2 3 4 5 6 7 8 9; do echo "$(token "node$n"),system:node:node$n,node$n,\"system:nodes\""; done
  } >"$CERTS/tokens.csv"
  for n in admin manager scheduler node{1..9}; do kubeconfig "$n" >"$STATE/$n.kubeconfig"; done
}

# token USER: the same one each time, from a secret of this cluster.
token() {
  [ -s "$CERTS/secret" ] || openssl rand -hex 32 >"$CERTS/secret"
  printf '%s %s' "$1" "$(cat "$CERTS/secret")" | sha256sum | cut -c1-40
}

kubeconfig() {
  cat <<X
apiVersion: v1
kind: Config
clusters: [{name: lab, cluster: {server: "https://$API_ADDRESS:$API_PORT", insecure-skip-tls-verify: true}}]
users: [{name: $1, user: {token: $(token "$1")}}]
contexts: [{name: lab, context: {cluster: lab, user: $1}}]
current-context: lab
X
}

control_plane_up() {
  rm -rf "$STATE/etcd"
  background etcd "$PROGRAMS/etcd" --data-dir "$STATE/etcd" --unsafe-no-fsync --log-level warn
  background kube-apiserver "$PROGRAMS/kube-apiserver" --etcd-servers=http://127.0.0.1:2379 --cert-dir="$CERTS" \
    --bind-address=0.0.0.0 --advertise-address=$API_ADDRESS --secure-port=$API_PORT --service-cluster-ip-range=$SERVICE_RANGE \
    --service-account-issuer=https://kubernetes.default.svc --service-account-key-file="$CERTS/sa.pub" \
    --service-account-signing-key-file="$CERTS/sa.key" --token-auth-file="$CERTS/tokens.csv" \
    --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged=true \
    --kubelet-preferred-address-types=InternalIP
  wait_for 90 "the API server" kubectl get --raw /readyz || { log_tail etcd kube-apiserver; return 1; }
  background kube-controller-manager "$PROGRAMS/kube-controller-manager" --kubeconfig "$STATE/manager.kubeconfig" \
    --service-account-private-key-file="$CERTS/sa.key" --use-service-account-credentials \
    --root-ca-file="$CERTS/apiserver.crt" --leader-elect=false
  background kube-scheduler "$PROGRAMS/kube-scheduler" --kubeconfig "$STATE/scheduler.kubeconfig" --leader-elect=false
}

# control_plane_ready waits for what the first `kubectl apply` needs.
control_plane_ready() {
  wait_for 60 "the default service account" kubectl get serviceaccount default || { log_tail kube-controller-manager; return 1; }
}
