"""Workloads of sessions: what each turn adds, when it is due, and the readers of traces and conversations."""
