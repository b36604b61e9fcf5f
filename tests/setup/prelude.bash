# Sourced by the set-up scripts and by tests/run: where things are, and how to speak. Not run by itself.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# Everything that is fetched or made for the tests; safe to delete at any time when no test runs.
cache=${BRIG_TEST_CACHE:-$root/tests/.cache}
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
# Tools that the tests need and this machine lacks are put here, never into the system's or the user's folders.
PATH=$cache/tools/bin:$PATH
me=$(basename "$0")

say() { echo "$me: $*"; }

fail() {
  echo "$me: $*" >&2
  exit 1
}

is_root() { [ "$(id -u)" = 0 ]; }

# Two runs over one cache wait for each other instead of writing over each other. Held until this script ends.
lock() {
  exec 9>"$cache/$1.lock"
  flock --nonblock 9 || {
    say "waiting for another run that holds $cache/$1.lock"
    flock 9
  }
}

# An empty word when no PostgreSQL server is installed. The highest version of Debian's packages, which are not in PATH, goes first.
postgres_bin() {
  local initdb
  for initdb in $(ls -d /usr/lib/postgresql/*/bin/initdb 2>/dev/null | sort --version-sort --reverse) $(type -P initdb); do
    initdb=$(readlink --canonicalize "$initdb")
    [ -x "${initdb%/*}/pg_ctl" ] && [ -x "${initdb%/*}/postgres" ] && echo "${initdb%/*}" && return
  done
}

# A Python environment of our own, so that nothing is installed into the system's.
python_venv() {
  [ -x "$cache/tools/venv/bin/pip" ] || python3 -m venv "$cache/tools/venv" || fail "python3 -m venv failed: see tests/setup/packages"
}

# pip_fetch DIR REQUIREMENT SHA256: downloads one wheel, which pip refuses when its digest differs.
pip_fetch() {
  python_venv
  "$cache/tools/venv/bin/pip" download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes \
    --dest "$1" --requirement <(echo "$2 --hash=sha256:$3") \
    || fail "could not fetch $2 with sha256 $3: if it was changed at its source, look at it and record the new digest in tests/setup/$me"
}

# unzip_member ARCHIVE MEMBER FILE: appears whole or not at all.
unzip_member() {
  python3 -c 'import sys, zipfile; sys.stdout.buffer.write(zipfile.ZipFile(sys.argv[1]).read(sys.argv[2]))' "$1" "$2" >"$3.part"
  mv "$3.part" "$3"
}
