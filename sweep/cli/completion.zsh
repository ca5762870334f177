#compdef sweep
_sweep() {
    local -a candidates=(${(f)"$(sweep completion --words ${words[1,CURRENT-1]} "$words[CURRENT]" 2>/dev/null)"})
    if (( $#candidates )); then
        compadd -S '' -- ${(M)candidates:#*=}
        compadd -- ${candidates:#*=}
    else
        _files
    fi
}
compdef _sweep sweep
