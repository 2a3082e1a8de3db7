#!/bin/sh
# The tests that kill processes or run several at once, again and again beside two busy loops, to
# show that none depends on who else uses the machine. Ends at the first failure.
#
#   tests/repeat_process_tests.sh [ROUNDS] [PYTEST'S WORDS ...]     20 rounds where none are given
#
# PYTHON is the interpreter, that of `make test` where it is not set.
set -u
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-.venv/bin/python}
rounds=${1:-20}
[ $# -gt 0 ] && shift

busy=""
for _ in 1 2; do
    sh -c 'while :; do :; done' &
    busy="$busy $!"
done
trap 'kill $busy' EXIT
trap 'exit 130' INT TERM

round=1
while [ "$round" -le "$rounds" ]; do
    echo "round $round of $rounds"
    # shellcheck disable=SC2046 # names of files, several words
    "$python" -m pytest -m processes --exitfirst "$@" \
        $(grep -rl --include='test_*.py' mark.processes tests) || exit 1
    round=$((round + 1))
done
