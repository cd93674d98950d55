"""Mutants of the calls past the dispatcher."""

from .mutant import in_file

__all__ = ["MUTANTS"]

_WATCHERS = in_file(
    "direct",
    "rope_kernels/ops/direct.py",
    ("        torch._C._are_functorch_transforms_active,\n", "", "transforms are passed over"),
    ("        torch._C._len_torch_dispatch_stack,\n", "", "dispatch modes are passed over"),
    ("        torch._C._len_torch_function_stack,\n", "", "function modes are passed over"),
    ("        torch._C._is_tracing,\n", "", "a tracer is passed over"),
    ("        torch._C._autograd._profiler_enabled,\n", "", "a profiler is passed over"),
)

_OVERLAP = in_file(
    "direct",
    "csrc/direct/overlap.h",
    ("if (d.stride < spanned) return false;", "if (d.stride < width) return false;",
     "dimensions are compared with the last one alone"),
    ("d.stride < period || d.stride % period == 0", "true", "strides that are no multiple of the period"),
    ("a.extent(period) <= gap && ", "", "views that overlap from below within a period"),
    (" && gap + b.extent(period) <= period", "", "views that overlap from above within a period"),
    ("a.start + bytes(a) <= b.start", "a.start <= b.start", "memory that begins later but within"),
)  # fmt: skip

_CALLS = in_file(
    "direct",
    "csrc/direct/module.cpp",
    ("k_to.is_nested() && are_apart(q_to, k_to)", "k_to.is_nested()", "outputs that overlap each other"),
    ("!(q_stays || are_apart(q_to, q_from))", "false", "q_out over a part of q"),
    ("(k_stays || are_apart(k_to, k_from))", "true", "k_out over a part of k"),
    ("(k_stays || are_apart(q_to, k_from))", "true", "q_out over k"),
    ("(q_stays || are_apart(k_to, q_from))", "true", "k_out over q"),
    ("return most + 1;", "return most;", "the length is the last position"),
    ("    count_version(arguments[0], arguments[1]);\n", "", "what is written in place is no new version"),
    ("    count_version(outputs[0], outputs[1]);\n", "", "what is written to buffers is no new version"),
    ("(!is_integer(*at.positions) || offset.is_given())", "(offset.is_given())", "positions of other kinds"),
    ("(!is_integer(*at.positions) || offset.is_given())", "(!is_integer(*at.positions))", "positions beside an offset"),
    ("(q.dim != 3 || ", "(false || ", "packed sequences of a batch"),
    ("(at.positions && !seq_len.view)", "false", "positions beside cu_seqlens"),
    ("tokens + (job.offset.count ? job.offset[i] : 0)", "tokens", "lengths that count without their offset"),
    ("packed.bound(i + 1) - packed.bound(i) : job.tokens", "job.tokens : job.tokens", "lengths of packed sequences"),
    ("tokens > 0 ? tokens +", "true ? tokens +", "empty sequences have the length of their offset"),
    ("view->dim == 0 && view->dtype == aoti_torch_dtype_int64()", "view->dim == 0", "scalars of int32"),
    ("if (offset.number) job.offset", "if (offset.view) job.offset", "offsets that are numbers"),
    ("      job.seq_len = {&longest, 1, 0};\n", "", "frequencies stay at their initial state"),
    ("count != Inputs::kCount || !is_for_us({arguments[0], arguments[1]})) return refused(Py_False)",
     "count != Inputs::kCount || !is_for_us({arguments[0]})) return refused(Py_False)", "a gradient of k is lost"),
    ("!is_for_us({arguments[0], arguments[1], outputs[0], outputs[1]})", "!is_for_us({arguments[0], arguments[1]})",
     "a gradient of an output is lost"),
    ("    launch_each(job, [given](Job& each) { launch_cpu(each, given); });\n",
     "    PyEval_RestoreThread(thread);\n    launch_each(job, [given](Job& each) { launch_cpu(each, given); });\n"
     "    thread = PyEval_SaveThread();\n", "Python's other threads wait for a call"),
    ("!is_forwarding() && ", "", "the backend that a thread asked for"),
    ("const bool has_k = std::exchange(k_.tensor, nullptr) != nullptr;\n    q_.tensor = nullptr;",
     "const bool has_k = k_.tensor != nullptr;", "results are freed while Python has them"),
)  # fmt: skip

_PYTHON = in_file(
    "direct",
    "csrc/direct/python_tensors.h",
    ("PyLong_AsLong(current.get()) >= 0", "PyLong_AsLong(current.get()) > 0", "the first level of forward mode"),
    ("if (!is_tensor || torch_python", "if (torch_python", "subclasses of tensors"),
    ("~Owned() { Py_DecRef(object_); }", "~Owned() {}", "references are kept"),
    ("#pragma weak PyTuple_Pack\n", "", "the library needs Python"),
)

_OUTPUTS = in_file(
    "direct",
    "csrc/ops/outputs.h",
    ("v.stride[inner] == 0 || v.stride[outer] == 0", "false", "strides of 0 have a place in the order"),
    ("return v.size[inner] > v.size[outer] ? 1 : 0;", "return 0;", "dimensions of one stride stay in their order"),
    ("return fills || size == 0 ? kept : dense;", "return kept;", "gaps are allocated"),
    ("(v.size[dim] == 1 || v.stride[dim] == size)", "v.stride[dim] == size", "strides of single dimensions count"),
)

_CACHE = in_file(
    "direct",
    "csrc/cpu/scratch.cpp",
    ("spec.id != spec_ || length != length_", "length != length_", "configs share the frequencies at a length"),
    ("spec.id != spec_ || length != length_", "spec.id != spec_", "a config keeps the frequencies of another length"),
)

_SCRATCH = in_file(
    "direct",
    "csrc/cpu/dispatch.cpp",
    (
        "thread_local ThreadState thread(",
        "static ThreadState thread(",
        "threads that call at once share scratch memory",
    ),
)

MUTANTS = [*_WATCHERS, *_OVERLAP, *_CALLS, *_PYTHON, *_OUTPUTS, *_CACHE, *_SCRATCH]
