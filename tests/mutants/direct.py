"""Mutants of the calls past the dispatcher."""

from .mutant import in_file

__all__ = ["MUTANTS"]

MUTANTS = [
    *in_file(
        "direct",
        "rope_kernels/ops/direct.py",
        ("refusal", "        torch._C._are_functorch_transforms_active,\n", "", "a transform does not see the call"),
        ("refusal", "        torch._C._autograd._profiler_enabled,\n", "", "a profiler does not see the call"),
    ),
    *in_file(
        "direct",
        "csrc/direct/overlap.h",
        (
            "operand",
            "if (d.stride < spanned) return false;",
            "if (d.stride < width) return false;",
            "dimensions are compared with the last one alone",
        ),
        ("branch", "d.stride < period || d.stride % period == 0", "true", "strides that are no multiple of the period"),
        ("bound", "a.extent(period) <= gap && ", "", "views that overlap from below within a period"),
        ("dropped", "a.start + bytes(a) <= b.start", "a.start <= b.start", "memory that begins later but within"),
    ),
    *in_file(
        "direct",
        "csrc/direct/cached.h",
        ("refusal", "!is_on_cuda(call.q) && !has_rows(call.job)", "false", "positions past the table are read"),
        ("refusal", "*given != 2 * num_pairs", "false", "a rotary_dim that the table contradicts"),
        ("operand", "num_pairs * bytes_of(sin.dtype)", "0", "cosines as sines"),
    ),
    *in_file(
        "direct",
        "csrc/direct/inputs.h",
        ("refusal", "k_to.is_nested() && are_apart(q_to, k_to)", "k_to.is_nested()", "outputs that overlap each other"),
        ("refusal", "(k_stays || are_apart(q_to, k_from))", "true", "q_out over k"),
        ("bound", "return most + 1;", "return most;", "the length is the last position"),
        (
            "refusal",
            "(!is_integer(*at.positions) || offset.is_given())",
            "(offset.is_given())",
            "positions of other kinds",
        ),
        (
            "dropped",
            "tokens + (job.offset.count ? job.offset[i] : 0)",
            "tokens",
            "lengths that count without their offset",
        ),
        (
            "operand",
            "packed.bound(i + 1) - packed.bound(i) : job.tokens",
            "job.tokens : job.tokens",
            "lengths of packed sequences",
        ),
        (
            "refusal",
            "count != usual + 2 || is_recorded(",
            "count != usual + 2 || false && is_recorded(",
            "a gradient of a norm's weight is lost",
        ),
        ("branch", "tokens > 0 ? tokens +", "true ? tokens +", "empty sequences have the length of their offset"),
        ("width", "view->dim == 0 && view->dtype == aoti_torch_dtype_int64()", "view->dim == 0", "scalars of int32"),
        (
            "order",
            "    done = body();\n",
            "    PyEval_RestoreThread(thread);\n    done = body();\n    thread = PyEval_SaveThread();\n",
            "Python's other threads wait for a call",
        ),
    ),
    *in_file(
        "direct",
        "csrc/direct/module.cpp",
        ("state", "    count_version(arguments[0], arguments[1]);\n", "", "what is written in place is no new version"),
        (
            "refusal",
            "if (!is_for_us({arguments[0], arguments[1]})) return refused(Py_False)",
            "if (!is_for_us({arguments[0]})) return refused(Py_False)",
            "a gradient of k is lost",
        ),
        (
            "state",
            "const bool has_k = std::exchange(k_.tensor, nullptr) != nullptr;\n    q_.tensor = nullptr;",
            "const bool has_k = k_.tensor != nullptr;",
            "results are freed while Python has them",
        ),
    ),
    *in_file(
        "direct",
        "csrc/direct/python_tensors.h",
        (
            "bound",
            "PyLong_AsLong(current.get()) >= 0",
            "PyLong_AsLong(current.get()) > 0",
            "the first level of forward mode",
        ),
        ("refusal", "if (!is_tensor || torch_python", "if (torch_python", "subclasses of tensors"),
        ("state", "~Owned() { Py_DecRef(object_); }", "~Owned() {}", "references are kept"),
        ("dropped", "#pragma weak PyTuple_Pack\n", "", "the library needs Python"),
    ),
    *in_file(
        "direct",
        "csrc/ops/outputs.h",
        ("branch", "v.stride[inner] == 0 || v.stride[outer] == 0", "false", "strides of 0 have a place in the order"),
        ("operand", "return fills || size == 0 ? kept : dense;", "return kept;", "gaps are allocated"),
    ),
    *in_file(
        "direct",
        "csrc/ops/run.cpp",
        ("refusal", "  if (backend != Backend::kNative) return false;\n", "", "use_backend of this thread is ignored"),
    ),
    *in_file(
        "direct",
        "csrc/cpu/scratch.cpp",
        (
            "state",
            "spec.id != spec_ || length != length_",
            "length != length_",
            "configs share the frequencies at a length",
        ),
        (
            "state",
            "spec.id != spec_ || length != length_",
            "spec.id != spec_",
            "a config keeps the frequencies of another length",
        ),
    ),
    *in_file(
        "direct",
        "csrc/cpu/dispatch.cpp",
        (
            "state",
            "thread_local ThreadState thread(",
            "static ThreadState thread(",
            "threads that call at once share scratch memory",
        ),
    ),
    *in_file(
        "direct",
        "csrc/ops/tensor_job.h",
        (
            "refusal",
            "                    x.size[l.tokens] == q.size[l.tokens] && at(",
            "                    at(",
            "k with other tokens than q's",
        ),
    ),
]
