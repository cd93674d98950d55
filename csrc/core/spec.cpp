// Parses the operator's text into a Spec, a layout and flags. The grammar is in rope_kernels/core/spec.py.
#include "core/spec.h"

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cmath>
#include <initializer_list>
#include <iterator>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "core/frequency.h"

namespace rope {
namespace {

[[noreturn]] void refuse(std::string_view field, std::string_view value) {
  throw std::invalid_argument("spec: " + std::string(field) + " is '" + std::string(value) + "'");
}

template <class NAMES>
std::string listed(const NAMES& names) {
  std::string all;
  for (const std::string_view name : names) all += (all.empty() ? "" : ", ") + std::string(name);
  return all;
}

[[noreturn]] void refuse_unknown(std::string_view what, std::string_view word, const std::string& allowed) {
  throw std::invalid_argument("spec: unknown " + std::string(what) + " '" + std::string(word) + "', allowed are " +
                              allowed);
}

std::vector<std::string_view> split(std::string_view text, char at) {
  std::vector<std::string_view> parts;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(at, begin), text.size());
    parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

template <class T>
T number(std::string_view field, std::string_view text) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size()) refuse(field, text);
  if constexpr (std::is_floating_point_v<T>) {
    if (!std::isfinite(value)) refuse(field, text);
  }
  return value;
}

template <class T>
std::vector<T> numbers(std::string_view field, std::string_view text) {
  std::vector<T> out;
  for (const std::string_view part : split(text, ',')) out.push_back(number<T>(field, part));
  return out;
}

/// The key=value fields of an encoded spec. A key that nobody takes is unknown: see refuse_others.
class Fields {
 public:
  explicit Fields(std::string_view encoded) {
    for (const std::string_view part : split(encoded, ';')) {
      const std::size_t equals = part.find('=');
      if (equals == std::string_view::npos) refuse("text", part);
      const std::string_view key = part.substr(0, equals);
      if (find(key) != nullptr) throw std::invalid_argument("spec: key '" + std::string(key) + "' comes twice");
      given_.push_back({key, part.substr(equals + 1), false});
    }
  }

  /// The value of a key, or nullptr.
  const std::string_view* take(std::string_view key) {
    known_.push_back(key);
    Field* const found = find(key);
    if (found == nullptr) return nullptr;
    found->taken = true;
    return &found->value;
  }

  const std::string_view& require(std::string_view key) {
    const std::string_view* const value = take(key);
    if (value == nullptr) throw std::invalid_argument("spec: key '" + std::string(key) + "' is missing");
    return *value;
  }

  template <class T>
  void read(std::string_view key, T& into) {
    if (const auto* const value = take(key)) into = number<T>(key, *value);
  }

  template <class T>
  void read_word(std::string_view key, T& into, std::initializer_list<std::pair<std::string_view, T>> allowed) {
    const auto* const value = take(key);
    if (value == nullptr) return;
    const auto found = std::find_if(allowed.begin(), allowed.end(), [&](const auto& a) { return a.first == *value; });
    if (found == allowed.end()) refuse(key, *value);
    into = found->second;
  }

  /// Refuses keys that were not taken. Call it after taking all known ones.
  void refuse_others() const {
    for (const Field& field : given_) {
      if (!field.taken) refuse_unknown("key", field.key, listed(known_));
    }
  }

 private:
  struct Field {
    std::string_view key, value;
    bool taken;
  };

  Field* find(std::string_view key) {
    const auto found = std::find_if(given_.begin(), given_.end(), [key](const Field& f) { return f.key == key; });
    return found == given_.end() ? nullptr : &*found;
  }

  std::vector<Field> given_;
  std::vector<std::string_view> known_;
};

FrequencyParams read_params(Fields& fields) {
  FrequencyParams p;
  p.theta = number<double>("theta", fields.require("theta"));
  p.freq_dim = number<std::int32_t>("freq_dim", fields.require("freq_dim"));
  p.num_frequencies = number<std::int32_t>("num_frequencies", fields.require("num_frequencies"));
  p.rotated = p.num_frequencies;
  fields.read("rotated", p.rotated);
  fields.read("factor", p.factor);
  if (const auto* const ramp = fields.take("ramp")) {
    const auto abc = numbers<double>("ramp", *ramp);
    if (abc.size() != 3) refuse("ramp", *ramp);
    p.ramp_index = abc[0];
    p.ramp_frequency = abc[1];
    p.ramp_start = abc[2];
  }
  fields.read("attention_scaling", p.scaling);
  p.long_scaling = p.scaling;
  fields.read("long_attention_scaling", p.long_scaling);
  fields.read("switch_length", p.switch_length);
  fields.read("dynamic_factor", p.dynamic_factor);
  fields.read("dynamic_length", p.dynamic_length);
  return p;
}

Rotation read_rotation(Fields& fields) {
  Rotation r;
  r.head_dim = number<std::int32_t>("head_dim", fields.require("head_dim"));
  r.num_pairs = number<std::int32_t>("num_pairs", fields.require("num_pairs"));
  r.distance = number<std::int32_t>("distance", fields.require("distance"));
  fields.read("rotary_offset", r.rotary_offset);
  fields.read("blocks", r.blocks);
  fields.read_word("pairing", r.pairing,
                   {{"half", Pairing::kHalf},
                    {"interleaved", Pairing::kInterleaved},
                    {"interleaved_to_half", Pairing::kInterleavedToHalf}});
  fields.read_word("phase", r.phase, {{"exact", Phase::kExact}, {"float32", Phase::kFloat32}});
  fields.read_word("table_dtype", r.table_dtype, {{"bfloat16", Number::kBFloat16}, {"float16", Number::kFloat16}});
  if (const auto* const axis = fields.take("axis")) r.axis = numbers<std::int32_t>("axis", *axis);
  if (const auto* const index = fields.take("freq_index")) r.freq_index = numbers<std::int32_t>("freq_index", *index);
  return r;
}

std::vector<std::vector<double>> read_multipliers(Fields& fields, const FrequencyParams& p) {
  std::vector<std::vector<double>> multipliers;
  if (const auto* const text = fields.take("multipliers")) {
    for (const std::string_view list : split(*text, '|')) {
      multipliers.push_back(numbers<double>("multipliers", list));
      if (std::cmp_less(multipliers.back().size(), p.num_frequencies)) refuse("multipliers", list);
    }
  }
  return multipliers;
}

/// Checks what the kernels rely on: they check no index.
void check_fit(const Rotation& r, const FrequencyParams& p) {
  const auto require = [](bool holds, std::string_view field, std::int64_t value) {
    if (!holds) refuse(field, std::to_string(value));
  };
  require(r.num_pairs >= 1 && r.num_pairs <= kMaxPairs, "num_pairs", r.num_pairs);
  require(r.blocks >= 1 && r.num_pairs % r.blocks == 0, "blocks", r.blocks);
  require(r.rotary_offset >= 0, "rotary_offset", r.rotary_offset);
  const std::int64_t width = r.num_pairs / r.blocks, distance = r.distance;
  const bool no_gaps = r.blocks > 1 || r.pairing == Pairing::kInterleavedToHalf;
  require(no_gaps ? distance == width : distance >= width, "distance", distance);
  const std::int64_t span = r.pairing == Pairing::kInterleaved ? 2 * width : distance + width;
  require(r.rotary_offset + (r.blocks - 1) * 2 * distance + span <= r.head_dim, "head_dim", r.head_dim);
  const auto pairs = static_cast<std::size_t>(r.num_pairs);
  require(r.axis.empty() || r.axis.size() == pairs, "axis", static_cast<std::int64_t>(r.axis.size()));
  for (const std::int32_t axis : r.axis) require(axis >= 0, "axis", axis);
  const auto& index = r.freq_index;
  require(index.empty() || index.size() == pairs, "freq_index", static_cast<std::int64_t>(index.size()));
  for (const std::int32_t j : index) require(j >= 0 && j < p.num_frequencies, "freq_index", j);
  require(!index.empty() || p.num_frequencies >= r.num_pairs, "num_frequencies", p.num_frequencies);
}

std::vector<Span> untouched(const Rotation& r) {
  const std::int32_t first = r.rotary_offset;
  std::vector<Span> spans{{0, first}};
  if (r.pairing == Pairing::kInterleaved || r.blocks > 1 || r.num_pairs == r.distance) {
    spans.push_back({first + 2 * r.num_pairs, r.head_dim});
  } else {
    spans.push_back({first + r.num_pairs, first + r.distance});
    spans.push_back({first + r.distance + r.num_pairs, r.head_dim});
  }
  std::erase_if(spans, [](const Span& s) { return s.first >= s.last; });
  return spans;
}

constexpr std::pair<std::string_view, Layout> kLayouts[] = {
    {"bshd", {0, 1, 2}},
    {"bhsd", {0, 2, 1}},
    {"sbhd", {1, 0, 2}},
    {"thd", {-1, 0, 1}},
};

constexpr std::string_view kFlags[] = {"inverse", "unscaled"};
constexpr std::string_view kNorms[] = {"q_norm", "k_norm", "v_norm"};

void read_flag(std::string_view word, std::string_view name, bool& flag) {
  if (word != name) return;
  if (flag) throw std::invalid_argument("spec: flag '" + std::string(name) + "' comes twice");
  flag = true;
}

/// Reads eps|weight_offset|order.
Norm read_norm(std::string_view name, std::string_view text) {
  const std::vector<std::string_view> parts = split(text, '|');
  const bool has_order = parts.size() == 3 && (parts[2] == "before" || parts[2] == "after");
  if (!has_order) refuse(name, text);
  const Norm norm{true, number<double>(name, parts[0]), number<double>(name, parts[1]), parts[2] == "after"};
  if (norm.eps < 0) refuse(name, text);
  return norm;
}

/// Reads a word after the layout: a flag, or a norm.
void read_word(std::string_view word, Operation& operation) {
  const std::size_t equals = word.find('=');
  const std::string_view name = word.substr(0, equals);
  if (equals == std::string_view::npos && std::find(std::begin(kFlags), std::end(kFlags), name) != std::end(kFlags)) {
    read_flag(name, "inverse", operation.inverse);
    read_flag(name, "unscaled", operation.unscaled);
    return;
  }
  for (int i = 0; equals != std::string_view::npos && i < 3; ++i) {
    if (name != kNorms[i]) continue;
    if (operation.norms[i].is_given) throw std::invalid_argument("spec: flag '" + std::string(name) + "' comes twice");
    operation.norms[i] = read_norm(name, word.substr(equals + 1));
    return;
  }
  refuse_unknown("flag", word, listed(kFlags) + ", " + listed(kNorms));
}

}  // namespace

Frequencies Spec::at(double alpha, bool is_long) const {
  Frequencies f;
  const std::int32_t n = rotation.num_pairs;
  f.split_low.resize(static_cast<std::size_t>(n));
  f.split_high.resize(static_cast<std::size_t>(n));
  for (std::int32_t pair = 0; pair < n; ++pair) {
    const std::int32_t j = rotation.frequency_of(pair);
    double multiplier = 1.0;
    if (!multipliers.empty()) {
      const auto& chosen = multipliers[is_long && multipliers.size() > 1 ? 1 : 0];
      multiplier = chosen[static_cast<std::size_t>(j)];
    }
    const double radians = inv_freq(params, j, alpha, multiplier);
    if (!std::isfinite(radians)) refuse("inv_freq", std::to_string(radians));
    const std::uint64_t turns = fixed_point_turns(radians);
    f.radians.push_back(radians);
    f.low.push_back(static_cast<std::uint32_t>(turns));
    f.high.push_back(static_cast<std::uint32_t>(turns >> 32));
    const auto slot = static_cast<std::size_t>(n % 2 ? pair : (pair % 2) * (n / 2) + pair / 2);
    f.split_low[slot] = f.low.back();
    f.split_high[slot] = f.high.back();
  }
  return f;
}

Spec parse_spec(std::string_view encoded) {
  static std::atomic<std::uint64_t> last_id = 0;
  Fields fields(encoded);
  Spec spec;
  spec.id = ++last_id;
  spec.params = read_params(fields);
  spec.rotation = read_rotation(fields);
  spec.multipliers = read_multipliers(fields, spec.params);
  fields.refuse_others();
  check_fit(spec.rotation, spec.params);
  for (const std::int32_t axis : spec.rotation.axis) spec.axes = std::max(spec.axes, axis + 1);
  const Rotation& r = spec.rotation;
  spec.untouched = untouched(r);
  spec.splits = r.pairing == Pairing::kHalf && r.blocks == 1 && r.num_pairs % 2 == 0 && r.distance % 2 == 0 &&
                r.rotary_offset % 2 == 0;
  spec.initial = spec.at(1.0, false);
  if (spec.params.switch_length > 0) spec.beyond = spec.at(1.0, true);
  return spec;
}

Layout layout_of(std::string_view name) {
  std::vector<std::string_view> names;
  for (const auto& [known, layout] : kLayouts) {
    if (known == name) return layout;
    names.push_back(known);
  }
  refuse_unknown("layout", name, listed(names));
}

Operation parse_text(std::string_view text) {
  const std::size_t at = text.find('@');
  Operation operation;
  operation.layout = layout_of("bshd");
  if (at != std::string_view::npos) {
    const std::vector<std::string_view> words = split(text.substr(at + 1), ',');
    operation.layout = layout_of(words.front());
    for (auto word = words.begin() + 1; word != words.end(); ++word) read_word(*word, operation);
  }
  operation.spec = parse_spec(text.substr(0, at));
  return operation;
}

}  // namespace rope
