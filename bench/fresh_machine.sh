#!/usr/bin/env bash
# Tries this clone's HEAD on a bare Debian of any release: what README says is installed, a fresh clone, an empty home.
#
#     bench/fresh_machine.sh SUITE FOLDER COMMAND...
#     bench/fresh_machine.sh trixie /srv/trixie "make demo" "make test"
#
# SUITE is Debian's name of the release, FOLDER a folder for its chroot, made by debootstrap unless it exists. Each
# COMMAND is run in the clone; the last lines tell versions, seconds and results. Needs root, debootstrap and a network.
# Exit code 3: the chroot or its packages could not be had; nothing was tried.
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,9s/^# \?//p' "$0" >&2; exit 2; }
suite=$1 root=$(realpath -m "$2")
shift 2
project=$(cd "$(dirname "$0")/.." && pwd)
packages=$(grep -om1 'apt install [^`]*' "$project/README.md" | cut -d' ' -f3-)

if [ ! -e "$root/etc/debian_version" ]; then
  { debootstrap --variant=minbase "$suite" "$root" || { rm -rf "$root"; false; }; } > "$root.log" 2>&1 ||
    { tail -5 "$root.log" >&2; exit 3; }
fi
rm -rf "$root/newcomer"
git clone -q --no-hardlinks "$project" "$root/newcomer/project"
[ -z "${PIP_CERT:-}" ] || cp -L "$PIP_CERT" "$root/newcomer/certificates"  # behind a proxy, pip needs this one

cat > "$root/newcomer/run" <<'RUN'
set -uo pipefail
export DEBIAN_FRONTEND=noninteractive
# A mirror that is a snapshot of the past is good enough.
apt="apt-get -qq -o Acquire::Check-Valid-Until=false"
{ $apt update && $apt install --no-install-recommends $PACKAGES; } > ~/apt.log 2>&1 || { tail -5 ~/apt.log >&2; exit 3; }
[ ! -s ~/certificates ] || export PIP_CERT=~/certificates
cd ~/project
summary="$(date -u +%F)  Debian $(cat /etc/debian_version)  $(python3 --version)  g++ $(g++ -dumpfullversion)"
worst=0
for command in "$@"; do
  echo "--- $command"
  SECONDS=0
  bash -c "$command"
  code=$?
  [ $code = 0 ] || worst=1
  summary+=$'\n'"$([ $code = 0 ] && echo passed || echo "FAILED ($code)")  $SECONDS s  $command"
done
numpy=$(.venv/bin/python -c 'import numpy; print(numpy.__version__)' 2>/dev/null)
printf -- '--- summary\n%s\n' "${summary/$'\n'/  numpy $numpy$'\n'}"
exit $worst
RUN
unshare --mount bash -c '
  mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && mount --rbind /sys "$0/sys" &&
  exec chroot "$0" env -i HOME=/newcomer TERM=dumb PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    LANG=C.UTF-8 PACKAGES="$1" bash /newcomer/run "${@:2}"' "$root" "$packages" "$@"
