# `make run` and `make test` are all that a new machine needs.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# The playground is tested in a real browser: Debian's where that can be installed.
INSTALL_CHROMIUM := if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	apt-get install -y -qq --no-install-recommends chromium >/dev/null; \
	else $(BIN)/python -m playwright install chromium; fi

# Debian's Prometheus scrapes a running service in the tests. Only its two programs are wanted:
# installing the package would start a server.
PROMETHEUS := $(BIN)/prometheus
INSTALL_PROMETHEUS := if command -v apt-get >/dev/null; then \
	if [ "$$(id -u)" = 0 ]; then apt-get update -qq; fi && \
	packed=$$(mktemp -d) && (cd $$packed && apt-get download -qq prometheus 2>/dev/null && \
	dpkg-deb --extract prometheus_*.deb .) && \
	mv $$packed/usr/bin/prometheus $$packed/usr/bin/promtool $(BIN)/; \
	status=$$?; rm -rf "$$packed"; exit $$status; \
	else echo "The tests need prometheus and promtool in the PATH: https://prometheus.io/download" >&2; \
	exit 1; fi

.PHONY: run test check bench soak demo-model pictures plan-table verify-compose verify-image verify-metrics \
	verify-models verify-plan verify-s3 clean

run: $(VENV)/.run
	$(BIN)/koala up

# Half of the time the tests wait for processes of their own, so two run at a time. Files that take
# long are few tests each: in the order of their number of tests they would come last.
WORKERS ?= 2
test: $(VENV)/.test
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

check: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.bench
	$(BIN)/python -m bench --output docs/performance/results.json
	$(BIN)/python -m bench report docs/performance/results.json

# Not part of the tests: it takes a quarter of an hour on a quiet machine.
MINUTES ?= 15
soak: $(VENV)/.test
	$(BIN)/python -m bench.soak --minutes $(MINUTES) --output docs/reliability/soak.json

# Of the playground, for the README.
pictures: $(VENV)/.test
	$(BIN)/python -m tests.playground.pictures docs

# The metrics under load: Prometheus scrapes, a worker is killed, the dashboard is drawn.
SECONDS ?= 120
verify-metrics: $(VENV)/.test
	$(BIN)/python -m bench.dashboard --seconds $(SECONDS) --output docs/dashboard.png

# Not part of the tests: 4 GiB of weights each, and minutes.
verify-models: $(VENV)/.test
	$(BIN)/python -m bench.full_size koala-700m koala-1b

# What `koala plan` predicts beside what is measured here, and the table in README.md.
verify-plan: $(VENV)/.test
	$(BIN)/python -m bench.plan_check

plan-table: $(VENV)/.run
	$(BIN)/python -m worker.planning.readme README.md

demo-model: $(VENV)/.test
	$(BIN)/python -m distill.train

# Not part of the tests: it needs root, buildah and debootstrap, and takes some minutes.
verify-image:
	deploy/verify-image.sh

# docker-compose.yml on a real engine: root, Docker with Compose and buildx, debootstrap, half an hour.
verify-compose: $(VENV)/.test
	$(BIN)/python -m deploy.verify_compose

# As root too, for it makes network namespaces.
verify-s3: $(VENV)/.test
	deploy/verify-s3.sh

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The build of torch that the machine can use, or the one of TORCH_INDEX; what is there is kept.
TORCH_INDEX ?=
$(VENV)/constraints.txt: $(BIN)/python constraints.txt deploy/torch_build.py
	$(BIN)/python deploy/torch_build.py --index='$(TORCH_INDEX)' --output=$@

$(VENV)/.run: $(VENV)/constraints.txt pyproject.toml
	$(PIP) install --quiet --constraint $< --editable '.[worker,embedded]'
	touch $@

$(VENV)/.test: $(VENV)/constraints.txt $(VENV)/.run
	$(PIP) install --quiet --constraint $< --editable '.[worker,embedded,distill,test]'
	command -v chromium >/dev/null || $(INSTALL_CHROMIUM)
	command -v promtool >/dev/null || [ -x $(PROMETHEUS) ] || ($(INSTALL_PROMETHEUS))
	touch $@

$(VENV)/.bench: $(VENV)/constraints.txt $(VENV)/.run
	$(PIP) install --quiet --constraint $< --editable '.[worker,embedded,bench]'
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
