#!/usr/bin/env bash
# man.sh — man pages and shell completion out of the texts that `qsweep help COMMAND` prints, so that there is one source.
#
#   jobs/man.sh BUILD VERSION     writes BUILD/man/qsweep.1, BUILD/man/qsweep-COMMAND.1 and BUILD/completion/qsweep.bash
#
# man -l build/man/qsweep-run.1; . build/completion/qsweep.bash (zsh: autoload bashcompinit && bashcompinit first)
set -eu
[ $# -eq 2 ] || { echo "usage: jobs/man.sh BUILD VERSION" >&2; exit 2; }
build=$1 version=$2
qsweep=$build/qsweep
rm -rf "$build/man.part"
mkdir -p "$build/man.part" "$build/completion"

overview=$("$qsweep" help)
commands=$(sed -n 's/^  \([a-z][a-z-]*\)  *.*/\1/p' <<<"$overview")
summary_of() { sed -n "s/^  $1  *//p" <<<"$overview" | head -n 1; }

# Help text to roff: the first "usage:" paragraph is the synopsis, a line of a few words without an indent that stands
# before an indented block is a heading, indented blocks keep their lines, all else is filled.
to_roff() {
    awk '
    function roff(s) { gsub(/\\/, "\\e", s); gsub(/-/, "\\-", s); if (s ~ /^[.'"'"']/) s = "\\&" s; return s }
    function mode(m) {
        if (m == now) return
        if (now == "block") print ".fi\n.RE"
        if (m == "block") print ".RS 2\n.nf"
        if (m == "text") print ".PP"
        now = m
    }
    { line[NR] = $0 }
    END {
        i = 1
        print ".SH SYNOPSIS\n.nf"
        for (; i <= NR && line[i] != ""; i++) { s = line[i]; sub(/^usage: */, "", s); sub(/^       /, "", s); print roff(s) }
        print ".fi\n.SH DESCRIPTION"
        now = "start"
        for (; i <= NR; i++) {
            s = line[i]
            if (s == "") { if (now == "block") print ""; else if (now == "text") print ".PP"; continue }
            if (s !~ /^ / && length(s) < 40 && s !~ /[.;,]$/ && line[i - 1] == "" && line[i + 1] ~ /^  /) {
                mode("heading"); sub(/:$/, "", s); print ".SH " roff(toupper(s)); continue
            }
            if (s ~ /^ /) { mode("block"); sub(/^  /, "", s) } else mode("text")
            print roff(s)
        }
        mode("end")
    }'
}
page() { # page NAME SUMMARY: the help text on standard input
    printf '.TH %s 1 "" "qsweep %s" "qsweep"\n.SH NAME\n%s \\- %s\n' "${1^^}" "$version" "${1//-/\\-}" "${2//-/\\-}"
    to_roff
}
{
    page qsweep "what does a lower precision buy: memory, speed, quality" <<<"$(sed -n '/^usage/,$p' <<<"$overview")"
    printf '.SH EXIT STATUS\n.nf\n0 ok\n1 failed\n2 usage\n3 finished, but some cells failed\n4 regression found (compare)\n.fi\n.SH SEE ALSO\n'
    for command in $commands; do printf '.BR qsweep\\-%s (1)\n' "$command"; done
} >"$build/man.part/qsweep.1"
for command in $commands; do
    { "$qsweep" help "$command" | page "qsweep-$command" "$(summary_of "$command")"; printf '.SH SEE ALSO\n.BR qsweep (1)\n'; } >"$build/man.part/qsweep-$command.1"
done

{
    echo "# bash completion for qsweep $version and qsweep-mpi, made from the help texts."
    echo '_qsweep() {'
    echo '    local word=${COMP_WORDS[COMP_CWORD]} options='
    echo '    COMPREPLY=()'
    echo "    if [ \"\$COMP_CWORD\" -eq 1 ]; then COMPREPLY=(\$(compgen -W \"$(echo $commands) help --version --help\" -- \"\$word\")); return; fi"
    echo '    case ${COMP_WORDS[1]} in'
    echo "    help) [ \"\$COMP_CWORD\" -eq 2 ] && COMPREPLY=(\$(compgen -W \"$(echo $commands)\" -- \"\$word\")); return ;;"
    for command in $commands; do
        options=$("$qsweep" help "$command" | grep -oE '(^|[][ |(,])--[a-z][a-z0-9-]*' | grep -oE -- '--[a-z0-9-]*' | sort -u | tr '\n' ' ')
        echo "    $command) options=\"${options}--help\" ;;"
    done
    echo '    esac'
    echo '    case $word in'
    echo '    -*) COMPREPLY=($(compgen -W "$options" -- "$word")) ;;'
    echo '    *) compopt -o default 2>/dev/null ;;'
    echo '    esac'
    echo '}'
    echo 'complete -F _qsweep qsweep qsweep-mpi'
} >"$build/completion/qsweep.bash.part"
rm -rf "$build/man"
mv "$build/man.part" "$build/man"
mv "$build/completion/qsweep.bash.part" "$build/completion/qsweep.bash"
echo "man: $(ls "$build/man" | wc -l) pages in $build/man, completion in $build/completion/qsweep.bash" >&2
