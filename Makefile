# make install   a .venv here, with the library (editable) and its dependencies as pinned in constraints.txt
# make demo      install; encode the emoji that come with the library, train a small MaskDiT on their latents, into
#                runs/demo; interrupted and started again, it goes on where it was; then how often its samples obey their
#                labels, and how far they are from its training images
# make test      install, with the developers' tools; lint; the whole test suite
# make lint      style, format and types; shell scripts
# make clean     remove what builds and tools left; .venv and runs stay
#
# PYTHON=python3.12 names the Python that .venv is made with.

SHELL := bash
PYTHON ?=
PYTHONS = $(or $(PYTHON),python3.13 python3.12 python3.11 python3 python)

.PHONY: install demo test lint clean

install: .venv/.installed

demo: install
	.venv/bin/maskdit encode emoji-vae --data maskdit_emoji --out runs/emoji-latents
	.venv/bin/maskdit train --config maskdit_emoji --workdir runs/demo --config.data.latents=runs/emoji-latents
	.venv/bin/maskdit evaluate runs/demo --metrics labels,fd --num 256

test: lint
	.venv/bin/python -m pytest -n 2 --dist loadgroup

lint: .venv/.installed-dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/shellcheck launch/*.sh launch/slurm.sbatch

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name .venv -prune -o -name __pycache__ -prune -exec rm -rf {} +

# The stamps make a second run instant; a changed pyproject.toml or constraints.txt installs again.
.venv/.installed: pyproject.toml constraints.txt | .venv/.made
	$(call pip_install,.)
	@touch $@

.venv/.installed-dev: pyproject.toml constraints.txt | .venv/.made
	$(call pip_install,.[dev])
	@touch $@ .venv/.installed

# Shows a dot for each package. All that pip says is in .venv/pip.log; where pip fails, the end of it is shown.
define pip_install
@echo "installing into .venv (70 to 100 packages, 0.3 GB; all that pip says goes to .venv/pip.log)"
@set -o pipefail; .venv/bin/python -m pip install --disable-pip-version-check -c constraints.txt -e '$(1)' 2>&1 \
	| tee .venv/pip.log \
	| awk '/^(Collecting|Requirement)/ {printf "."; fflush()} /^Installing coll/ {printf " unpacking"; fflush()} END {print ""}' \
	|| { tail -n 15 .venv/pip.log; echo "pip failed, see above; mend it and run make again"; exit 1; }
endef

# Keeps a .venv that works; else makes one with the first of PYTHONS that is new enough and complete.
.venv/.made:
	@works='import sys, pip; sys.exit(sys.version_info < (3, 11))'; \
	if .venv/bin/python -c "$$works" 2>/dev/null; then touch $@; exit 0; fi; \
	for python in $(PYTHONS); do \
		version=$$($$python -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue; \
		$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { old="$$old; $$python is $$version"; continue; }; \
		$$python -c 'import venv, ensurepip' 2>/dev/null || { bare="$${bare:-$$version}"; continue; }; \
		echo "making .venv with $$python (Python $$version)"; \
		$$python -m venv --clear .venv && touch $@ && exit 0; \
		exit 1; \
	done; \
	if [ -n "$$bare" ]; then \
		echo "Python $$bare is here without its modules venv and ensurepip, which make .venv."; \
		echo "On Debian and Ubuntu: sudo apt install python$$bare-venv. Then run make again."; \
	else \
		echo "maskdit needs Python 3.11 or newer; looked for: $(PYTHONS)$$old."; \
		echo "Install one (Debian, Ubuntu: sudo apt install python3 python3-venv; macOS: brew install python)"; \
		echo "or name one that is here: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12"; \
	fi; \
	exit 1
