# Settings of a Ray cluster: source this on every node before `ray start`, and wherever jobs are submitted.
# What they were measured to do is in clusters/README.md, what they protect from in SECURITY.md.
# shellcheck shell=sh

# Ray answers only those who send the token in ~/.ray/auth_token.
export RAY_AUTH_MODE=token

# The head asks each node for a sign of life, 0.5 s after the last answer. Three times 2 s of silence: it is dead.
export RAY_health_check_initial_delay_ms=0
export RAY_health_check_period_ms=500
export RAY_health_check_timeout_ms=2000
export RAY_health_check_failure_threshold=3

# Ray would report to its makers how it is used.
export RAY_USAGE_STATS_ENABLED=0

# Torch's threads sleep while they wait for each other: spinning makes learners slow wherever cores are shared.
export OMP_WAIT_POLICY=PASSIVE
