"""Result files -> cells, averages, intervals and verdicts. Imports neither the runner nor the report."""
