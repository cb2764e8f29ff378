# make demo         run the main job: a chat, stock model and vitcache side by side
#                   ARGS="--turns 3" passes options to python -m vitcache demo
# make test         run the tests with the newest supported versions
# make cudart       install the CUDA runtimes that tests open without a device, in .overlays; make test does it, too
# make test-oldest  run the tests of Triton and transformers with the oldest supported versions
# make test-newest  run the tests of transformers with the newest release of its major version, which may fail
# make test-torch   run the tests with another release of torch, except those of Triton: TORCH=2.14.1 or TORCH=newest,
#                   default 2.9.1, the oldest supported one. It is installed in .overlays: a build for the CPU with
#                   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu, else one for CUDA, 7 GB;
#                   ARGS="tests/placement -k gradients" selects tests
# make install-test build the sdist and the wheel, install each into a new environment, and use it in an empty folder
# make models       write docs/models.md, the table of models, from tests with the newest and the oldest versions
# make changes      write the tables of docs/changes.md from the list of changes that tests run
# make soak         run the tests that take minutes
# make fuzz         give random inputs to the native code under AddressSanitizer, for FUZZ_SECONDS=600; make test does it for 20 s
# make engines      run vLLM and SGLang on the CPU with vitcache and without it, in .venv-vllm and .venv-sglang, which it
#                   installs first (x86-64, 8 GB); ENGINE=vllm or ENGINE=sglang runs one of them, FULL=1 all engines, and
#                   `vllm serve` and `sglang serve`; ARGS="-k chunks" passes options to pytest
# make setup        create .venv with the pinned dependencies and the native module; the other targets run it first
# make check        run the linters, the type checker and the formatters' checks
# make format       format the code, repair lint errors, and write the stub of the native module
# make bench        run the benches; ARGS="--cases smoke" passes options to python -m vitcache bench
# make gpu          run a probe, the GPU tests, the benches and the sanitizers with the machine's own python3, without network
#                   or .venv, in order of their worth. RESULTS=dir, ONLY="probe tests sanitize <bench>...", DRY=1 for smoke
#                   sizes on the CPU, BUDGET=seconds to end in time, RESUME=dir to continue a run, COMMIT=name where
#                   the sources are not in git
# make clean        remove all files that these targets create
#
# PYTHON=python3.12 chooses the interpreter, CXX=g++-13 the compiler, MIN_DISK_GB=6 the free disk space to require.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test cudart test-oldest test-newest test-torch install-test models changes soak fuzz engines setup check check-clang format bench gpu clean

# If the repository's root were on sys.path, triton_kernels/ would hide the package of that name by Triton's authors.
export PYTHONSAFEPATH := 1
export CXX
# The disk space of .venv and its overlays with torch for the CPU. torch for CUDA needs about 5 GB more.
export MIN_DISK_GB ?= 4
ENGINES := vllm sglang
engines := $(or $(ENGINE),$(ENGINES))
# The disk space of the environments of these engines.
export MIN_ENGINES_DISK_GB ?= $(if $(ENGINE),5,8)

python := .venv/bin/python
native_sources := $(sort pyproject.toml setup.py CMakeLists.txt vitcache/_version.py vitcache/versions.py vitcache/extras.py $(wildcard csrc/*/*))
# The editable install has a link to each of these: a new room needs a new link.
linked := $(filter-out %/__pycache__/,$(wildcard vitcache/*.py vitcache/*.pyi vitcache/*/))
cpp_sources := $(wildcard csrc/*/*.h csrc/*/*.cpp tests/native/*.h tests/native/*.cpp)

# A stamp's name contains a checksum of its inputs. It is created last, so an interrupted step leaves no stamp.
checksum = $(shell { echo '$(CURDIR) $(2)'; cat $(1); } | sha256sum | cut -c1-16)
installed := .venv/.installed-$(call checksum,$(wildcard requirements/*.txt))
built := .venv/.built-$(call checksum,$(native_sources),$(CXX) $(linked))
# The oldest versions that are supported, and the first Triton that is launched without its binder; .venv has the newest.
overlays := triton-3.5.1 triton-3.6.0 transformers-5.17.0
TORCH ?= 2.9.1
FUZZ_SECONDS ?= 600
# Image processors of some models need it; it is not in .venv, so that the other tests show that vitcache does without.
torchvision := torchvision-0.28.0
# The CUDA runtimes that tests open without a device.
cudarts := $(shell sed -n '/^[a-z]/s/==/-/p' requirements/cudart.txt)
# The schemas of the files in examples/fleet.
schemas := $(shell sed -n '/^[a-z]/s/==/-/p' requirements/schemas.txt)

# An engine and its packages, and in them the vitcache that `make setup` has built.
recipe = $(wildcard requirements/engines/* requirements/$(1)/*) requirements/triton.txt requirements/dev.txt
linked_sources := $(native_sources) $(wildcard requirements/*.txt) requirements/engines/link.sh
vllm_installed := .venv-vllm/.installed-$(call checksum,$(call recipe,vllm))
vllm_linked := .venv-vllm/.linked-$(call checksum,$(linked_sources),$(CXX) $(linked))
sglang_installed := .venv-sglang/.installed-$(call checksum,$(call recipe,sglang))
sglang_linked := .venv-sglang/.linked-$(call checksum,$(linked_sources),$(CXX) $(linked))

stub := vitcache/_native.pyi
generated_stub := build/stub/$(stub)

help:
	@sed '/^$$/,$$d; s/^# \?//' Makefile

setup: $(built)

$(installed):
	@bash requirements/venv.sh
	$(python) -m pip install -r requirements/dev.txt
	$(python) -c 'import triton' 2>/dev/null || $(python) -m pip install --no-deps -r requirements/triton.txt
	@rm -f .venv/.installed-* && touch $@

$(built): $(installed)
	@bash requirements/venv.sh
	PATH="$(CURDIR)/.venv/bin:$$PATH" CMAKE_ARGS="-DCMAKE_COMPILE_WARNING_AS_ERROR=ON -DVITCACHE_STAND_IN_FAULTS=ON" \
	  $(python) -m pip install --no-build-isolation --no-deps -e .
	@rm -f .venv/.built-* && touch $@

# A second version of one package, put before the one in .venv by PYTHONPATH.
.overlays/%/.installed: | $(installed)
	rm -rf $(@D)
	$(python) -m pip install --no-deps --target $(@D) $(subst -,==,$*)
	@touch $@

demo: setup
	@$(python) -m vitcache demo $(ARGS)

bench: setup
	@$(python) -m vitcache bench $(ARGS)

# Before the tests are built: CMake compares the headers of these wheels with csrc/runtime/cuda_runtime.h.
cudart: $(cudarts:%=.overlays/%/.installed)

test: setup cudart $(torchvision:%=.overlays/%/.installed) $(schemas:%=.overlays/%/.installed)
	@bash tests/run.sh test $(torchvision)

test-oldest: setup $(overlays:%=.overlays/%/.installed)
	@bash tests/run.sh oldest $(overlays)

# torch and the packages that it needs: a build for CUDA has its own Triton. The newest release is installed each time.
.overlays/torch-%/.installed: | $(installed)
	rm -rf $(@D)
	$(python) -m pip install --target $(@D) torch$(if $(filter-out newest,$*),==$*)
	@touch $@

.overlays/torch-newest/.installed: FORCE
FORCE: ;

test-torch: setup .overlays/torch-$(TORCH)/.installed
	@bash tests/run.sh torch torch-$(TORCH) $(ARGS)

# Its environments are new ones, so it does not need `make setup`.
install-test:
	@PYTHON='$(PYTHON)' bash tests/install/run.sh

test-newest: setup
	rm -rf .overlays/transformers-newest
	$(python) -m pip install -q --no-deps --target .overlays/transformers-newest 'transformers<6'
	@bash tests/run.sh newest transformers-newest

models: setup $(filter .overlays/transformers%,$(overlays:%=.overlays/%/.installed))
	@bash tests/run.sh models $(filter transformers%,$(overlays))

changes: setup
	@$(python) tests/support/changes_table.py

soak: setup
	@bash tests/run.sh soak

fuzz: setup cudart
	@bash tests/run.sh fuzz $(FUZZ_SECONDS)

# `make setup` writes it when it makes .venv: an interpreter of another version needs other packages.
.venv/pyvenv.cfg: | $(built) ;

$(vllm_installed) $(sglang_installed): .venv/pyvenv.cfg
	@bash requirements/$(patsubst .venv-%/,%,$(dir $@))/venv.sh
	@rm -f $(@D)/.installed-* && touch $@

$(vllm_linked): $(vllm_installed)
$(sglang_linked): $(sglang_installed)
$(vllm_linked) $(sglang_linked): $(built)
	@bash requirements/engines/link.sh $(@D)
	@rm -f $(@D)/.linked-* && touch $@

engines: $(foreach engine,$(engines),$($(engine)_linked))
	@bash tests/engines/run.sh '$(engines)' $(if $(FULL),--full) $(ARGS)

# A dry run uses .venv if it exists, and updates it first.
gpu: $(if $(DRY),$(if $(PYTHON),,$(if $(wildcard .venv),setup)))
	@PYTHON='$(PYTHON)' RESULTS='$(RESULTS)' ONLY='$(ONLY)' DRY='$(DRY)' BUDGET='$(BUDGET)' RESUME='$(RESUME)' \
	  COMMIT='$(COMMIT)' bash tests/gpu/run.sh

# The stub of the native module, generated from its bindings. The bindings accept only int for integers; version,
# compiler and flags of this build are left out.
$(generated_stub): $(built) Makefile
	$(python) -m pybind11_stubgen vitcache._native -o build/stub
	sed -E -i -e 's/typing\.SupportsInt \| typing\.SupportsIndex/int/g' \
	  -e 's/typing\.SupportsFloat \| typing\.SupportsIndex/float/g' \
	  -e 's/^(version|compiler|flags): str = .*/\1: str/' $@
	$(python) -m ruff check -q --select I --fix $@
	$(python) -m ruff format -q $@

# Clang and clang-tidy check csrc/. Ninja checks changed files again, and all files if the list of checks changed.
build/clang/build.ninja: .clang-tidy Makefile | $(built)
	@for tool in clang++ clang-tidy; do command -v $$tool >/dev/null || \
	  { echo "make check: $$tool is not installed: apt-get install clang clang-tidy" >&2; exit 1; }; done
	rm -rf build/clang
	.venv/bin/cmake -S . -B build/clang -G Ninja -DCMAKE_MAKE_PROGRAM='$(CURDIR)/.venv/bin/ninja' \
	  -DCMAKE_CXX_COMPILER=clang++ -DCMAKE_CXX_CLANG_TIDY=clang-tidy -DCMAKE_COMPILE_WARNING_AS_ERROR=ON \
	  -DVITCACHE_STAND_IN_FAULTS=ON -DVITCACHE_BUILD_MODULE=ON -DPython_EXECUTABLE='$(CURDIR)/$(python)' \
	  -Dpybind11_DIR="$$($(python) -m pybind11 --cmakedir)"

check-clang: setup build/clang/build.ninja
	.venv/bin/cmake --build build/clang

check: setup check-clang $(generated_stub)
	@diff -u $(stub) $(generated_stub) || \
	  { echo 'make check: $(stub) differs from the bindings in csrc/python: make format writes it' >&2; exit 1; }
	$(python) -m ruff format --check .
	$(python) -m ruff check .
	$(python) -m mypy vitcache
	$(python) -m pytest -q --noconftest tests/test_rooms.py
	$(python) tests/test_prose.py
	.venv/bin/clang-format --dry-run -Werror $(cpp_sources)
	.venv/bin/zizmor --offline --quiet .github
	@! grep -rnE '\bcustom_op\b|^\s*assert\b' --include='*.py' vitcache triton_kernels || \
	  { echo 'make check: custom_op costs 10 us a call; raise an exception in place of assert' >&2; exit 1; }
	@! grep -rn 'cudaDeviceSynchronize' csrc || \
	  { echo 'make check: cudaDeviceSynchronize waits for the work of other libraries, too' >&2; exit 1; }

format: setup $(generated_stub)
	cp $(generated_stub) $(stub)
	$(python) -m ruff format .
	$(python) -m ruff check --fix .
	.venv/bin/clang-format -i $(cpp_sources)

clean:
	rm -rf .venv .venv-vllm .venv-sglang .overlays build dist results vitcache.egg-info vitcache/*.so
