complete -c sweep -a '(sweep completion --words (commandline -opc) (commandline -ct) 2>/dev/null)'
