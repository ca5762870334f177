"""Commands and runs that search: the highest load, a first answer, a race, the way between two command lines."""
