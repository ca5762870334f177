"""Commands and runs that search: the highest load, a first answer, a race, what differs between two command lines."""
