#!/usr/bin/env bash
# Runs each fuzz target of the module for FUZZTIME, one after the other.
# `go test -list` finds them, so that a new target needs no change here.
set -euo pipefail
: "${GO:=go}" "${FUZZTIME:=20s}"

found=0
while read -r dir; do
	listed=$("$GO" test -list '^Fuzz' "$dir" </dev/null) # fails here when it does not compile
	for target in $(grep '^Fuzz' <<<"$listed" || true); do
		found=$((found + 1))
		echo "== $dir $target for $FUZZTIME"
		"$GO" test -run '^$' -fuzz "^$target\$" -fuzztime "$FUZZTIME" "$dir" </dev/null
	done
done < <("$GO" list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.Dir}}{{end}}' ./...)

if [ "$found" -eq 0 ]; then
	echo "fuzz: no fuzz target found" >&2
	exit 1
fi
echo "fuzz: $found targets, nothing found"
