# What the demos share. They read it; it does nothing by itself.
step() { printf '\n$'; printf ' %q' "$@"; printf '\n'; "$@"; }
done_before() { [ -d "$1/export" ] && printf '\n%s/export is there\n' "$1"; }

# A function beside what follows, into a log of its own; later, its end and its commands.
start_beside() { # function, log
  beside_log=$2
  "$1" > "$beside_log" 2>&1 &
  beside_job=$!
  trap 'kill $(jobs -p) 2> /dev/null || true' EXIT
}
finish_beside() {
  wait "$beside_job" || { tail -n 20 "$beside_log" >&2; exit 1; }
  grep '^\$' "$beside_log"
}
