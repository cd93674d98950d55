// rope_kernels_math: the mathematics and the CPU kernels over numpy arrays, for property tests and tools. No torch.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <vector>

#include "core/float_angle.h"
#include "core/job.h"
#include "cpu/rotate.h"
#include "cpu/scratch.h"

namespace py = pybind11;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;

py::array_t<double> inv_freq(const std::string& text, std::optional<std::int64_t> seq_len) {
  const rope::Spec spec = rope::parse_spec(text);
  rope::FrequencyCache cache;
  return py::cast(seq_len ? cache.at(spec, *seq_len).radians : spec.initial.radians);
}

template <class T>
py::tuple sin_cos_of(const Array<T>& of, void (*compute)(T, float&, float&)) {
  const std::vector<py::ssize_t> shape(of.shape(), of.shape() + of.ndim());
  py::array_t<float> sine(shape), cosine(shape);
  for (py::ssize_t i = 0; i < of.size(); ++i) {
    compute(of.data()[i], sine.mutable_data()[i], cosine.mutable_data()[i]);
  }
  return py::make_tuple(sine, cosine);
}

py::tuple sin_cos(const Array<std::uint32_t>& phase) { return sin_cos_of<std::uint32_t>(phase, rope::sin_cos); }

py::tuple sin_cos_of_angle(const Array<float>& angle) {
  return sin_cos_of<float>(angle, [](float radians, float& sine, float& cosine) {
    rope::sin_cos_of_angle(rope::turns_of(radians), radians, sine, cosine);
  });
}

/// The instruction set of a call; the best one afterwards.
class OnIsa {
 public:
  explicit OnIsa(const std::string& isa) {
    if (!rope::force_isa(isa)) throw std::invalid_argument("isa: got '" + isa + "', which this machine cannot run");
  }
  ~OnIsa() { rope::force_isa(""); }
  OnIsa(const OnIsa&) = delete;
  OnIsa& operator=(const OnIsa&) = delete;
};

rope::DType dtype_of(const py::array& x, bool bfloat16) {
  if (x.dtype().kind() == 'f' && x.itemsize() == 4) return rope::DType::kFloat32;
  if (x.dtype().kind() == 'f' && x.itemsize() == 2) return rope::DType::kFloat16;
  if (x.dtype().kind() == 'u' && x.itemsize() == 2 && bfloat16) return rope::DType::kBFloat16;
  throw std::invalid_argument("x: dtype, allowed are float32, float16, and uint16 with bfloat16=True");
}

/// x (tokens, heads, head_dim), positions (tokens,) or (axes, tokens).
py::array rotate(const std::string& text, const py::array& x, const Array<std::int64_t>& positions,
                 std::optional<std::int64_t> seq_len, bool inverse, bool bfloat16, const std::string& isa) {
  const rope::Spec spec = rope::parse_spec(text);
  rope::Job job;
  job.dtype = dtype_of(x, bfloat16);
  if (x.ndim() != 3 || x.shape(2) != spec.rotation.head_dim) {
    throw std::invalid_argument("x: shape, must be (tokens, heads, head_dim)");
  }
  const bool one = positions.ndim() == 1;
  const bool fits = one ? spec.axes == 1 : positions.ndim() == 2 && positions.shape(0) >= spec.axes;
  if (!fits || positions.shape(one ? 0 : 1) != x.shape(0)) {
    throw std::invalid_argument("positions: shape, must be (tokens,), or (axes, tokens) where there are several axes");
  }
  py::array out = py::array::ensure(x.attr("copy")());
  const std::int64_t heads = x.shape(1), dim = x.shape(2);
  const rope::Strides strides{0, heads * dim, dim};
  job.spec = &spec;
  job.operands[0] = {out.data(), out.mutable_data(), heads, strides, strides};
  job.num_operands = 1;
  job.batch = 1;
  job.tokens = x.shape(0);
  job.positions = {positions.data(), rope::Number::kInt64, one ? 0 : positions.shape(1), 0, 1};
  if (seq_len) job.seq_len = {&*seq_len, 1, 0};
  job.inverse = inverse;
  job.in_place = true;
  job.words = dim % 2 == 0;
  const OnIsa forced(isa);
  rope::rotate_cpu(job, 0, job.tokens);
  return out;
}

}  // namespace

PYBIND11_MODULE(rope_kernels_math, m) {
  using namespace py::literals;
  m.doc() = "The mathematics of rope_kernels' C++ code over numpy arrays; a spec is what RopeConfig.spec() returns.";
  m.def("inv_freq", &inv_freq, "spec"_a, "seq_len"_a = py::none(),
        "Frequencies in radians per position, one per pair; the initial ones without a length.");
  m.def(
      "parse_text", [](const std::string& text) { rope::parse_text(text); }, "text"_a,
      "Parses an operator's text; raises ValueError where it is not one.");
  m.def("fixed_point_turns", py::vectorize(rope::fixed_point_turns), "inv_freq"_a,
        "Turns per position in 2^-64, modulo one turn.");
  m.def("phase_of", py::vectorize(rope::phase_of), "position"_a, "turns"_a, "Phase in 2^-32 turns.");
  m.def("phase_of_turns", py::vectorize(rope::phase_of_turns), "turns"_a,
        "Phase in 2^-32 turns of a product in turns.");
  m.def("sin_cos", &sin_cos, "phase"_a, "(sine, cosine) in float32 of phases.");
  m.def("turns_of", py::vectorize(rope::turns_of), "radians"_a, "2^-64 turns of a float32, modulo one turn.");
  m.def("sin_cos_of_angle", &sin_cos_of_angle, "radians"_a, "(sine, cosine) in float32 of float32 angles.");
  m.def("isas", &rope::isas, "Instruction sets of this machine, best first.");
  m.def("rotate", &rotate, "spec"_a, "x"_a, "positions"_a, py::kw_only(), "seq_len"_a = py::none(), "inverse"_a = false,
        "bfloat16"_a = false, "isa"_a = "",
        "x (tokens, heads, head_dim) rotated to positions (tokens,) or (axes, tokens), as a new array.");
}
