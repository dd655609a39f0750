# shellcheck shell=bash
# What the commands in ci/ have in common: check the machine, install what is missing, make the environment.
# Every message goes to stderr; the last line on stdout belongs to the command itself.

CACHE=${LLM_REPLICAS_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/llm-replicas}

# "what to look for | Debian package | what for": a command, or a file if it begins with /.
BASE_NEEDS='
/usr/share/keyrings/debian-archive-keyring.gpg|debian-archive-keyring|checks the packages of the base image
mmdebstrap|mmdebstrap|makes the base image without a registry
buildah|buildah|builds the images without Docker
gcc|gcc|compiles the pause image
libc.a|libc6-dev|compiles the pause image
'
CLUSTER_NEEDS='
etcd|etcd-server|database of the cluster
runc|runc|starts the containers
nft|nftables|Service routing on the nodes
ip|iproute2|network of the nodes
conntrack|conntrack|connection tracking on the nodes
unshare|util-linux|namespaces of the nodes
mount|mount|file systems of the nodes
'

say() { printf '%s\n' "$*" >&2; }

# Ends with the exit code for a machine that lacks something.
refuse() {
  say "error: $1"
  shift
  for line in "$@"; do say "       $line"; done
  exit 2
}

is_root() { [[ $(id -u) == 0 ]]; }

# Whether a command line needs the native cluster, and so root and system packages.
wants_native() {
  local command='' cluster=native previous='' argument
  for argument in "$@"; do
    case $argument in
      --help | --version) return 1 ;;
      --cluster=*) cluster=${argument#--cluster=} ;;
      -*) ;;
      *)
        if [[ $previous == --cluster ]]; then
          cluster=$argument
        elif [[ -z $command ]]; then
          command=$argument
        fi
        ;;
    esac
    previous=$argument
  done
  [[ $cluster == native ]] || return 1
  case $command in
    up | down | gate | tools) return 0 ;;
    *) return 1 ;;
  esac
}

has() {
  case $1 in
    /*) [[ -e $1 ]] ;;
    *.a) compgen -G "/usr/lib*/$1" >/dev/null || compgen -G "/usr/lib/*/$1" >/dev/null ;;
    *) command -v "$1" >/dev/null || [[ -x /usr/sbin/$1 ]] || [[ -x /sbin/$1 ]] ;;
  esac
}

# Prints "package|what for" of each need that this machine lacks.
missing_packages() {
  local what package why
  while IFS='|' read -r what package why; do
    [[ -n $what ]] || continue
    has "$what" || printf '%s|%s\n' "$package" "$why"
  done <<<"$1"
}

# Installs the packages of the given lines, and says which and why.
install_packages() {
  local lines=$1 package why packages=()
  [[ -n $lines ]] || return 0
  while IFS='|' read -r package why; do packages+=("$package"); done <<<"$lines"
  if ! command -v apt-get >/dev/null; then
    refuse "this machine lacks ${packages[*]}, and there is no apt-get to install them with." \
      "Install their equivalents, or unpack a bundle from another machine (llm-replicas tools bundle)" \
      "and set LLM_REPLICAS_BIN to its bin folder."
  fi
  is_root || refuse "this machine lacks ${packages[*]}." \
    "Install them with: sudo apt-get install ${packages[*]}"
  say 'Installing Debian packages:'
  while IFS='|' read -r package why; do say "  $package ($why)"; done <<<"$lines"
  apt_install "${packages[@]}"
}

apt_install() (
  # Debian starts a service when it installs one; the etcd of the cluster is started by the cluster alone.
  policy=/usr/sbin/policy-rc.d
  if [[ ! -e $policy ]]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
  fi
  export DEBIAN_FRONTEND=noninteractive
  log=$(mktemp)
  if ! { apt-get update -qq -o DPkg::Lock::Timeout=300 && apt-get install -y -qq -o DPkg::Lock::Timeout=300 \
    --no-install-recommends "$@"; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    rm -f "$log"
    refuse "apt-get could not install: $*" "The lines above are the end of its output."
  fi
  rm -f "$log"
  # Nor may it start at the next boot.
  if [[ " $* " == *' etcd-server '* && -d /run/systemd/system ]]; then
    systemctl disable --quiet etcd.service >/dev/null 2>&1 || true
  fi
)

# Sets PYTHON to an interpreter of at least the needed version.
find_python() {
  local candidate
  for candidate in "${LLM_REPLICAS_PYTHON:-python3}" python3.13 python3.12 python3.11; do
    if command -v "$candidate" >/dev/null \
      && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      PYTHON=$("$candidate" -c 'import sys; print(sys.executable)')
      return
    fi
  done
  refuse 'Python 3.11 or newer is needed, and neither python3 nor python3.11 to python3.13 is that.' \
    'Install one (apt-get install python3), or set LLM_REPLICAS_PYTHON to its path.'
}

# Makes the virtual environment of this requirements.lock once, and sets VENV.
make_venv() {
  local root=$1 key
  if ! "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null; then
    install_packages 'python3-venv|makes the virtual environment'
  fi
  key=$({
    cat "$root/requirements.lock"
    "$PYTHON" -VV
    printf '%s' "$PYTHON"
  } | sha256sum | cut -c1-16)
  VENV=$CACHE/venv/$key
  [[ -e $VENV/complete ]] && return
  mkdir -p "$CACHE/venv" 2>/dev/null \
    || refuse "cannot create $CACHE/venv." 'Set LLM_REPLICAS_CACHE to a folder that you can write.'
  (
    flock --nonblock 9 || { say 'Waiting for another command that makes the environment.' && flock 9; }
    [[ -e $VENV/complete ]] && exit
    say "Installing the Python packages of requirements.lock into $VENV (once, about a minute)."
    rm -rf "$VENV"
    "$PYTHON" -m venv "$VENV"
    if ! "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes \
      -r "$root/requirements.lock" >&2; then
      rm -rf "$VENV"
      refuse 'pip could not install requirements.lock; its message is above.' \
        'Behind a mirror or a private authority, set PIP_INDEX_URL and PIP_CERT.'
    fi
    touch "$VENV/complete"
  ) 9>"$CACHE/venv/.lock"
}

# Makes this process use the environment, and the checkout's own sources.
enter_venv() {
  local root=$1
  export PATH="$VENV/bin:$PATH"
  export PYTHONPATH="$root/harness:$root${PYTHONPATH:+:$PYTHONPATH}"
  # What messages tell the user to type.
  export LLM_REPLICAS_COMMAND=${LLM_REPLICAS_COMMAND:-ci/llm-replicas}
}

# Checks for and installs what the native cluster needs.
setup_native() {
  is_root || refuse "the native cluster needs root: it makes network namespaces, mounts and control groups." \
    "Run the command as root, or use a cluster of yours: --cluster existing --context NAME"
  # System commands live here, and not every root shell looks.
  export PATH="$PATH:/usr/sbin:/sbin"
  local needs=$CLUSTER_NEEDS
  if [[ -n ${LLM_REPLICAS_BIN:-} ]]; then
    export PATH="$LLM_REPLICAS_BIN:$PATH"
  else
    command -v go >/dev/null || refuse 'the cluster is built from pinned Go modules, and there is no go in PATH.' \
      'Install it from https://go.dev/dl (ci/tools/*/go.mod name the version),' \
      'or set LLM_REPLICAS_BIN to a folder of ready binaries (llm-replicas tools bundle).'
    needs+=$BASE_NEEDS
  fi
  install_packages "$(missing_packages "$needs")"
}
