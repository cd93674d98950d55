// The operators of rope_kernels for CPU tensors, through torch's stable ABI: the only file that includes torch.
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <unordered_map>

#include "rotate.h"

namespace {

using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

constexpr std::int64_t kStreamingBytes = 8 << 20;  // larger than what the caches could keep for the next reader
constexpr std::int64_t kBytesPerThread = 128 << 10;

/// A tensor's metadata, read once: each accessor is a call through the ABI.
struct View {
  void* data = nullptr;
  const std::int64_t* size = nullptr;
  const std::int64_t* stride = nullptr;
  std::int64_t dim = 0;
  std::int32_t dtype = 0;

  View(const char* name, const Tensor& t) {
    std::int64_t *sizes, *strides;
    std::int32_t device;
    aoti_torch_get_device_type(t.get(), &device);
    STD_TORCH_CHECK(device == aoti_torch_device_type_cpu(), name, ": is not on the CPU");
    aoti_torch_get_data_ptr(t.get(), &data);
    aoti_torch_get_sizes(t.get(), &sizes);
    aoti_torch_get_strides(t.get(), &strides);
    aoti_torch_get_dim(t.get(), &dim);
    aoti_torch_get_dtype(t.get(), &dtype);
    size = sizes;
    stride = strides;
  }
};

/// Plans by spec. A call repeats the last spec of its thread nearly always; a plan is never dropped.
const rope::Plan& plan_of(const std::string& spec) {
  thread_local std::string last;
  thread_local const rope::Plan* plan = nullptr;
  if (plan != nullptr && spec == last) return *plan;
  static std::mutex mutex;
  static auto* plans = new std::unordered_map<std::string, std::unique_ptr<rope::Plan>>();
  const std::lock_guard lock(mutex);
  auto& made = (*plans)[spec];
  if (!made) made = std::make_unique<rope::Plan>(rope::parse_plan(spec));
  last = spec;
  plan = made.get();
  return *plan;
}

struct Layout {
  int batch, token, head;  // -1: there is none
};

Layout layout_of(const std::string& name) {
  if (name == "bshd") return {0, 1, 2};
  if (name == "bhsd") return {0, 2, 1};
  STD_TORCH_CHECK(name == "thd", "layout: got '", name, "', allowed are bshd, bhsd, thd");
  return {-1, 0, 1};
}

std::int64_t at(const std::int64_t* of, int dim, std::int64_t missing) { return dim < 0 ? missing : of[dim]; }

rope::Strides strides_of(const View& v, const Layout& l) {
  return {at(v.stride, l.batch, 0), v.stride[l.token], v.stride[l.head]};
}

rope::DType dtype_of(std::int32_t dtype) {
  static const std::int32_t f32 = aoti_torch_dtype_float32(), f16 = aoti_torch_dtype_float16();
  static const std::int32_t bf16 = aoti_torch_dtype_bfloat16();
  if (dtype == bf16) return rope::DType::kBFloat16;
  if (dtype == f32) return rope::DType::kFloat32;
  STD_TORCH_CHECK(dtype == f16, "q: dtype, allowed are float32, float16, bfloat16");
  return rope::DType::kFloat16;
}

rope::Number number_of(std::int32_t dtype) {
  if (dtype == aoti_torch_dtype_int64()) return rope::Number::kInt64;
  if (dtype == aoti_torch_dtype_int32()) return rope::Number::kInt32;
  if (dtype == aoti_torch_dtype_float32()) return rope::Number::kFloat32;
  if (dtype == aoti_torch_dtype_float64()) return rope::Number::kFloat64;
  if (dtype == aoti_torch_dtype_float16()) return rope::Number::kFloat16;
  STD_TORCH_CHECK(dtype == aoti_torch_dtype_bfloat16(), "positions: dtype");
  return rope::Number::kBFloat16;
}

rope::Rows rows_of(const char* name, const View& x, const View& y, const View& q, const Layout& l) {
  const bool fits = x.dim == q.dim && x.dtype == q.dtype && x.size[x.dim - 1] == q.size[q.dim - 1] &&
                    x.size[l.token] == q.size[l.token] && at(x.size, l.batch, 1) == at(q.size, l.batch, 1);
  STD_TORCH_CHECK(fits, name, ": does not match q");
  STD_TORCH_CHECK(x.stride[x.dim - 1] == 1 && y.stride[y.dim - 1] == 1, name, ": last stride must be 1");
  STD_TORCH_CHECK(y.dim == x.dim && y.dtype == x.dtype && !std::memcmp(y.size, x.size, sizeof(*x.size) * x.dim), name,
                  ": the output does not match it");
  return {x.data, y.data, x.size[l.head], strides_of(x, l), strides_of(y, l)};
}

/// (axes, batch or 1, tokens) strides of the forms that the public API takes; see rope_kernels/ops.py.
rope::Positions positions_of(const View& p, const rope::Job& job, const Layout& l) {
  const std::int32_t axes = job.plan->axes;
  const auto fits_batch = [&](std::int64_t size) { return size == 1 || size == job.batch; };
  bool fits = p.dim >= 1 && p.size[p.dim - 1] == job.tokens;
  if (p.dim == 2) fits = fits && (l.batch < 0 ? axes > 1 && p.size[0] == axes : fits_batch(p.size[0]));
  if (p.dim == 3) fits = fits && l.batch >= 0 && axes > 1 && p.size[0] == axes && fits_batch(p.size[1]);
  STD_TORCH_CHECK(fits && p.dim <= 3, "positions: shape");
  const auto stride = [&](std::int64_t dim) { return p.size[dim] == 1 ? 0 : p.stride[dim]; };
  rope::Positions out{p.data, number_of(p.dtype), 0, 0, p.stride[p.dim - 1]};
  if (p.dim == 3) out.axis = stride(0);
  if (p.dim == 2 && l.batch < 0) out.axis = stride(0);
  if (p.dim >= 2 && l.batch >= 0) out.batch = stride(p.dim - 2);
  return out;
}

rope::PerGroup per_group(const char* name, const MaybeTensor& t, std::int64_t groups) {
  if (!t) return {};
  const View v(name, *t);
  const bool fits = v.dim == 1 && (v.size[0] == 1 || v.size[0] == groups);
  STD_TORCH_CHECK(fits && v.dtype == aoti_torch_dtype_int64(), name, ": must be int64, with 1 or ", groups, " entries");
  return {static_cast<const std::int64_t*>(v.data), v.size[0], v.stride[0]};
}

rope::Packed packed_of(const MaybeTensor& t) {
  if (!t) return {};
  const View v("cu_seqlens", *t);
  const bool integer = v.dtype == aoti_torch_dtype_int64() || v.dtype == aoti_torch_dtype_int32();
  STD_TORCH_CHECK(v.dim == 1 && v.size[0] >= 2 && integer, "cu_seqlens: must be (sequences + 1,), int32 or int64");
  return {v.data, v.dtype == aoti_torch_dtype_int64(), v.size[0] - 1, v.stride[0]};
}

bool divides(const rope::Strides& s, std::int64_t by) { return (s.batch | s.token | s.head) % by == 0; }

bool aligned(const rope::Rows& r, std::uintptr_t bytes, std::int64_t elements) {
  const auto address = reinterpret_cast<std::uintptr_t>(r.in) | reinterpret_cast<std::uintptr_t>(r.out);
  return address % bytes == 0 && divides(r.from, elements) && divides(r.to, elements);
}

bool is_in_place(const rope::Rows& rows) { return rows.in == rows.out; }

/// Chooses the memory path and runs the job on torch's threads.
void launch(rope::Job& job, bool given) {
  if (job.num_rows == 2 && is_in_place(job.rows[0]) != is_in_place(job.rows[1])) {
    rope::Job second = job;
    second.rows[0] = job.rows[1];
    second.num_rows = job.num_rows = 1;
    launch(second, given);
  }
  job.in_place = is_in_place(job.rows[0]);
  const rope::Rotation& rotation = job.plan->rotation;
  std::int64_t bytes = 0;
  job.words = true;
  bool streamable = job.dtype != rope::DType::kFloat16 && job.plan->untouched.empty();
  for (int i = 0; i < job.num_rows; ++i) {
    const std::int64_t size = job.dtype == rope::DType::kFloat32 ? 4 : 2;
    bytes += job.rows[i].heads * rotation.head_dim * size;
    job.words = job.words && aligned(job.rows[i], 4, 2);
    streamable = streamable && aligned(job.rows[i], 64, 64 / size);
  }
  const std::int64_t tokens = job.batch * job.tokens;
  streamable = streamable && rotation.num_pairs % 32 == 0 && rotation.pairing != rope::Pairing::kInterleavedToHalf;
  job.streaming = given && !job.in_place && streamable && tokens * bytes > kStreamingBytes;
  if (tokens == 0 || bytes == 0) return;
  const std::int64_t grain = 1 + kBytesPerThread / bytes;
  if (tokens <= grain) return rope::rotate_cpu(job, 0, tokens);
  torch::stable::parallel_for(0, tokens, grain, [&](std::int64_t a, std::int64_t b) { rope::rotate_cpu(job, a, b); });
}

struct RunTime {
  const MaybeTensor &positions, &offset, &seq_len, &from_seq_len, &cu_seqlens;
};

/// `given`: the outputs are buffers of the caller's, whose pages exist.
void run(const View& q, const View* k, const View& q_out, const View* k_out, const RunTime& given_at,
         const std::string& spec, const std::string& layout, bool inverse, bool unscaled, bool given) {
  const Layout l = layout_of(layout);
  rope::Job job;
  job.plan = &plan_of(spec);
  const rope::Rotation& rotation = job.plan->rotation;
  STD_TORCH_CHECK(q.dim == (l.batch < 0 ? 3 : 4) && q.size[q.dim - 1] == rotation.head_dim, "q: rank or head_dim");
  job.dtype = dtype_of(q.dtype);
  job.batch = at(q.size, l.batch, 1);
  job.tokens = q.size[l.token];
  job.rows[0] = rows_of("q", q, q_out, q, l);
  job.num_rows = 1;
  if (k != nullptr) job.rows[job.num_rows++] = rows_of("k", *k, *k_out, q, l);
  if (given_at.positions) job.positions = positions_of(View("positions", *given_at.positions), job, l);
  job.packed = packed_of(given_at.cu_seqlens);
  STD_TORCH_CHECK(job.packed.bounds == nullptr || job.batch == 1, "cu_seqlens: packed sequences have no batch");
  const std::int64_t groups = job.packed.bounds != nullptr ? job.packed.sequences : job.batch;
  job.offset = per_group("offset", given_at.offset, groups);
  job.seq_len = per_group("seq_len", given_at.seq_len, groups);
  job.from_seq_len = per_group("from_seq_len", given_at.from_seq_len, groups);
  job.inverse = inverse;
  job.unscaled = unscaled;
  launch(job, given);
}

/// Whether the dimensions are dense in the order given; then torch's empty_like would keep the strides.
bool is_dense(const View& v, std::initializer_list<int> innermost_first) {
  std::int64_t expected = 1;
  for (const int dim : innermost_first) {
    if (v.stride[dim] != expected) return false;
    expected *= v.size[dim];
  }
  return expected > 0;
}

/// torch.empty_like, for the usual strides without a call through the dispatcher.
Tensor new_like(const Tensor& x, const View& v) {
  const bool dense = v.dim == 4 ? is_dense(v, {3, 2, 1, 0}) || is_dense(v, {3, 1, 2, 0}) : is_dense(v, {2, 1, 0});
  if (!dense) return torch::stable::empty_like(x);
  AtenTensorHandle made;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(v.dim, v.size, v.stride, v.dtype, aoti_torch_device_type_cpu(), 0, &made));
  return Tensor(made);
}

std::tuple<Tensor, Tensor> rotate(const Tensor& q, const MaybeTensor& k, const MaybeTensor& positions,
                                  const MaybeTensor& offset, const MaybeTensor& seq_len,
                                  const MaybeTensor& from_seq_len, const MaybeTensor& cu_seqlens,
                                  const std::string& spec, const std::string& layout, bool inverse, bool unscaled) {
  const RunTime at{positions, offset, seq_len, from_seq_len, cu_seqlens};
  const View qv("q", q);
  STD_TORCH_CHECK(qv.dim == 3 || qv.dim == 4, "q: rank");
  Tensor q_out = new_like(q, qv);
  const View qo("q", q_out);
  if (!k) {
    run(qv, nullptr, qo, nullptr, at, spec, layout, inverse, unscaled, false);
    return {q_out, torch::stable::new_empty(q, {0})};
  }
  const View kv("k", *k);
  STD_TORCH_CHECK(kv.dim == qv.dim, "k: rank");
  Tensor k_out = new_like(*k, kv);
  const View ko("k", k_out);
  run(qv, &kv, qo, &ko, at, spec, layout, inverse, unscaled, false);
  return {q_out, k_out};
}

void rotate_into(const Tensor& q, const MaybeTensor& k, const MaybeTensor& positions, const MaybeTensor& offset,
                 const MaybeTensor& seq_len, const MaybeTensor& from_seq_len, const MaybeTensor& cu_seqlens,
                 const std::string& spec, const std::string& layout, bool inverse, bool unscaled, const Tensor& q_out,
                 const MaybeTensor& k_out) {
  STD_TORCH_CHECK(k.has_value() == k_out.has_value(), "out: k_out must be given exactly where k is");
  const RunTime at{positions, offset, seq_len, from_seq_len, cu_seqlens};
  const View qv("q", q), qo("q_out", q_out);
  if (k) {
    const View kv("k", *k), ko("k_out", *k_out);
    run(qv, &kv, qo, &ko, at, spec, layout, inverse, unscaled, true);
  } else {
    run(qv, nullptr, qo, nullptr, at, spec, layout, inverse, unscaled, true);
  }
}

/// What the table operator needs of a plan: a geometry, no frequencies.
const rope::Plan& table_plan(std::int64_t head_dim, std::int64_t rotary_dim, const std::string& pairing) {
  const std::string pairs = std::to_string(rotary_dim / 2);
  return plan_of("head_dim=" + std::to_string(head_dim) + ";num_pairs=" + pairs + ";distance=" + pairs +
                 ";num_frequencies=" + pairs + ";pairing=" + pairing);
}

rope::Table table_of(const Tensor& cos, const Tensor& sin, const rope::Job& job, std::int64_t rotary_dim) {
  const View c("cos", cos), s("sin", sin);
  rope::Table table{c.data, s.data, number_of(c.dtype), {}, {}};
  STD_TORCH_CHECK(c.dtype == s.dtype && table.kind != rope::Number::kInt32 && table.kind != rope::Number::kInt64,
                  "cos, sin: must have one floating dtype");
  for (const View* v : {&c, &s}) {
    STD_TORCH_CHECK(v->dim == 3 && (v->size[0] == 1 || v->size[0] == job.batch) && v->size[1] == job.tokens &&
                        v->size[2] == rotary_dim,
                    "cos, sin: shape");
    const rope::Strides strides{v->size[0] == 1 ? 0 : v->stride[0], v->stride[1], v->stride[2]};
    (v == &c ? table.cosine_strides : table.sine_strides) = strides;
  }
  return table;
}

std::tuple<Tensor, Tensor> rotate_table(const Tensor& q, const MaybeTensor& k, const Tensor& cos, const Tensor& sin,
                                        std::int64_t rotary_dim, const std::string& pairing, const std::string& layout,
                                        bool inverse) {
  const Layout l = layout_of(layout);
  const View qv("q", q);
  STD_TORCH_CHECK(qv.dim == (l.batch < 0 ? 3 : 4), "q: rank");
  const std::int64_t head_dim = qv.size[qv.dim - 1];
  STD_TORCH_CHECK(rotary_dim > 0 && rotary_dim % 2 == 0 && rotary_dim <= head_dim, "rotary_dim: does not fit q");
  rope::Job job;
  job.plan = &table_plan(head_dim, rotary_dim, pairing);
  job.dtype = dtype_of(qv.dtype);
  job.batch = at(qv.size, l.batch, 1);
  job.tokens = qv.size[l.token];
  job.inverse = inverse;
  job.table = table_of(cos, sin, job, rotary_dim);
  Tensor q_out = new_like(q, qv), k_out = q_out;
  job.rows[0] = rows_of("q", qv, View("q_out", q_out), qv, l);
  job.num_rows = 1;
  if (k) {
    const View kv("k", *k);
    STD_TORCH_CHECK(kv.dim == qv.dim, "k: rank");
    k_out = new_like(*k, kv);
    job.rows[job.num_rows++] = rows_of("k", kv, View("k_out", k_out), qv, l);
  }
  launch(job, false);
  return {q_out, k ? k_out : torch::stable::new_empty(q, {0})};
}

void rotate_in_place(const Tensor& q, const MaybeTensor& k, const MaybeTensor& positions, const MaybeTensor& offset,
                     const MaybeTensor& seq_len, const MaybeTensor& from_seq_len, const MaybeTensor& cu_seqlens,
                     const std::string& spec, const std::string& layout, bool inverse, bool unscaled) {
  rotate_into(q, k, positions, offset, seq_len, from_seq_len, cu_seqlens, spec, layout, inverse, unscaled, q, k);
}

bool forwards_by_default() {
  const char* backend = std::getenv("ROPE_KERNELS_BACKEND");
  return backend != nullptr && *backend != '\0' && std::strcmp(backend, "native") != 0;
}

thread_local bool forwards = forwards_by_default();

/// What the call through the dispatcher failed with; torch tells since 2.13.
std::string last_error() {
  using What = const char* (*)();
  const auto what = reinterpret_cast<What>(dlsym(RTLD_DEFAULT, "torch_exception_get_what_without_backtrace"));
  const char* text = what != nullptr ? what() : nullptr;
  return text != nullptr ? text : "the backend asked for with rope_kernels.use_backend failed (torch printed why)";
}

using Boxed = void (*)(StableIValue*, std::uint64_t, std::uint64_t);

/// The operator, unless this thread asked for another backend: then the stack goes on to Python's implementation.
template <Boxed NATIVE>
void or_forward(const char* python, StableIValue* stack, std::uint64_t arguments, std::uint64_t outputs) {
  if (forwards) {
    if (torch_call_dispatcher(python, "", stack, TORCH_ABI_VERSION) != AOTI_TORCH_SUCCESS) {
      throw std::runtime_error(last_error());
    }
  } else {
    NATIVE(stack, arguments, outputs);
  }
}

void boxed_rotate(StableIValue* stack, std::uint64_t arguments, std::uint64_t outputs) {
  or_forward<TORCH_BOX(&rotate)>("rope_kernels::python_rotate", stack, arguments, outputs);
}
void boxed_rotate_in_place(StableIValue* stack, std::uint64_t arguments, std::uint64_t outputs) {
  or_forward<TORCH_BOX(&rotate_in_place)>("rope_kernels::python_rotate_", stack, arguments, outputs);
}
void boxed_rotate_out(StableIValue* stack, std::uint64_t arguments, std::uint64_t outputs) {
  or_forward<TORCH_BOX(&rotate_into)>("rope_kernels::python_rotate_out", stack, arguments, outputs);
}
void boxed_rotate_table(StableIValue* stack, std::uint64_t arguments, std::uint64_t outputs) {
  or_forward<TORCH_BOX(&rotate_table)>("rope_kernels::python_rotate_table", stack, arguments, outputs);
}

}  // namespace

#define ROPE_EXPORT extern "C" __attribute__((visibility("default")))

/// Called by Python (ctypes) in the thread that chooses a backend.
ROPE_EXPORT void rope_kernels_forward(int on) { forwards = on != 0; }
ROPE_EXPORT int rope_kernels_force_isa(const char* name) { return rope::force_isa(name) ? 1 : 0; }
ROPE_EXPORT const char* rope_kernels_isa() {
  thread_local std::string name;
  name = rope::current_isa();
  return name.c_str();
}
ROPE_EXPORT const char* rope_kernels_isas() {
  static const std::string names = [] {
    std::string all;
    for (const std::string& name : rope::isas()) all += (all.empty() ? "" : ",") + name;
    return all;
  }();
  return names.c_str();
}

STABLE_TORCH_LIBRARY_IMPL(rope_kernels, CPU, m) {
  m.impl("rotate", &boxed_rotate);
  m.impl("rotate_", &boxed_rotate_in_place);
  m.impl("rotate_out", &boxed_rotate_out);
  m.impl("rotate_table", &boxed_rotate_table);
}
