# Bash breaks words at `=`: the text before the last `=` is on the line already.
_sweep() {
    local line=${COMP_LINE:0:COMP_POINT} IFS=$'\n'
    local current=${line##*[[:space:]]}
    COMPREPLY=($(IFS=$' \t\n'; set -f; sweep completion --words ${line% *} "$current" 2>/dev/null))
    [[ $current == *=* && $COMP_WORDBREAKS == *=* ]] && COMPREPLY=("${COMPREPLY[@]#"${current%=*}="}")
    [[ ${COMPREPLY[0]-} == *= ]] && compopt -o nospace
}
complete -o default -F _sweep sweep
