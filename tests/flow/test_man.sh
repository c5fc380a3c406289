#!/usr/bin/env bash
# Man pages and completion are made from the help texts, name every command, and are well-formed.
set -u
build=$(cd "${QSWEEP_BUILD:-build}" && pwd)
cd "$(dirname "$0")/../.." || exit 1
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
n=0
check() { # check NAME COMMAND...
    local name=$1
    shift
    n=$((n + 1))
    if "$@" >"$dir/log" 2>&1; then echo "ok $n - $name"; else echo "not ok $n - $name"; head -n 20 "$dir/log" | sed 's/^/# /'; fi
}
ln -s "$build/qsweep" "$dir/qsweep"
check "the pages are made" jobs/man.sh "$dir" 0.0.0
commands=$("$build/qsweep" help | sed -n 's/^  \([a-z][a-z-]*\)  *.*/\1/p')
every_page() { for c in $commands; do grep -q "^\.SH SYNOPSIS" "$dir/man/qsweep-$c.1" || { echo "$c"; return 1; }; done; }
check "every command has a page" every_page
check "there are no other pages" [ "$(ls "$dir/man" | wc -l)" -eq $(($(wc -w <<<"$commands") + 1)) ]
all_options() { # every long option of a help text stands on its page
    for c in $commands; do
        for o in $("$build/qsweep" help "$c" | grep -oE -- '--[a-z][a-z-]*' | sort -u); do
            grep -qF -- "${o//-/\\-}" "$dir/man/qsweep-$c.1" || { echo "$c $o"; return 1; }
        done
    done
}
check "every option of a help text stands on its page" all_options
if command -v groff >/dev/null; then
    check "groff has no warning about any page" bash -c 'groff -man -Tutf8 -ww -K utf8 -rLL=160n -z "$1"/man/*.1 2>&1 | (! grep -v "cannot \(adjust\|break\) line")' - "$dir"
else
    echo "ok $((n += 1)) - groff has no warning about any page # skip no groff here"
fi
complete() { # complete WORDS...: what the completion offers for the last word
    bash -c '. "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _qsweep 2>/dev/null; printf "%s\n" "${COMPREPLY[@]}"' - "$dir/completion/qsweep.bash" "$@"
}
check "the completion offers commands" [ "$(complete qsweep doc)" = doctor ]
check "it offers the options of the command" [ "$(complete qsweep run --re)" = --resume ]
check "it offers commands after help" [ "$(complete qsweep help que; complete qsweep help quan)" = "
quantize" ]
echo "1..$n"
