// From the text of rope_kernels.spec to a Plan.
#include <algorithm>
#include <atomic>
#include <charconv>
#include <stdexcept>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "rotate.h"

namespace rope {
namespace {

using Values = std::unordered_map<std::string_view, std::string_view>;

std::vector<std::string_view> split(std::string_view text, char at) {
  std::vector<std::string_view> parts;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(at, begin), text.size());
    parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

[[noreturn]] void refuse(std::string_view field, std::string_view value) {
  throw std::invalid_argument("spec: " + std::string(field) + " is '" + std::string(value) + "'");
}

template <class T>
T number(std::string_view field, std::string_view text) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size()) refuse(field, text);
  return value;
}

template <class T>
void read(const Values& values, std::string_view field, T& into) {
  const auto found = values.find(field);
  if (found != values.end()) into = number<T>(field, found->second);
}

template <class T>
std::vector<T> numbers(std::string_view field, std::string_view text) {
  std::vector<T> out;
  for (const std::string_view part : split(text, ',')) out.push_back(number<T>(field, part));
  return out;
}

template <class T>
void choose(const Values& values, std::string_view field, T& into,
            std::initializer_list<std::pair<std::string_view, T>> allowed) {
  const auto found = values.find(field);
  if (found == values.end()) return;
  for (const auto& [name, value] : allowed) {
    if (name == found->second) {
      into = value;
      return;
    }
  }
  refuse(field, found->second);
}

FrequencyParams read_params(const Values& values) {
  FrequencyParams p;
  read(values, "theta", p.theta);
  read(values, "freq_dim", p.freq_dim);
  read(values, "num_frequencies", p.num_frequencies);
  p.rotated = p.num_frequencies;
  read(values, "rotated", p.rotated);
  read(values, "factor", p.factor);
  if (const auto ramp = values.find("ramp"); ramp != values.end()) {
    const auto abc = numbers<double>("ramp", ramp->second);
    if (abc.size() != 3) refuse("ramp", ramp->second);
    p.ramp_index = abc[0];
    p.ramp_frequency = abc[1];
    p.ramp_start = abc[2];
  }
  read(values, "attention_scaling", p.scaling);
  p.long_scaling = p.scaling;
  read(values, "long_attention_scaling", p.long_scaling);
  read(values, "switch_length", p.switch_length);
  read(values, "dynamic_factor", p.dynamic_factor);
  read(values, "dynamic_length", p.dynamic_length);
  return p;
}

Rotation read_rotation(const Values& values) {
  Rotation r;
  read(values, "head_dim", r.head_dim);
  read(values, "num_pairs", r.num_pairs);
  read(values, "distance", r.distance);
  read(values, "rotary_offset", r.rotary_offset);
  read(values, "blocks", r.blocks);
  choose(values, "pairing", r.pairing,
         {{"half", Pairing::kHalf},
          {"interleaved", Pairing::kInterleaved},
          {"interleaved_to_half", Pairing::kInterleavedToHalf}});
  choose(values, "phase", r.phase, {{"exact", Phase::kExact}, {"float32", Phase::kFloat32}});
  choose(values, "table_dtype", r.table_dtype, {{"bfloat16", Number::kBFloat16}, {"float16", Number::kFloat16}});
  if (const auto axis = values.find("axis"); axis != values.end()) {
    r.axis = numbers<std::int32_t>("axis", axis->second);
  }
  if (const auto index = values.find("freq_index"); index != values.end()) {
    r.freq_index = numbers<std::int32_t>("freq_index", index->second);
  }
  return r;
}

/// What the kernels take for granted; they check no index.
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

}  // namespace

Frequencies Plan::at(double alpha, bool is_long) const {
  Frequencies f;
  const std::int32_t n = rotation.num_pairs;
  f.split_low.resize(static_cast<std::size_t>(n));
  f.split_high.resize(static_cast<std::size_t>(n));
  for (std::int32_t pair = 0; pair < n; ++pair) {
    const std::int32_t j = rotation.frequency_of(pair);
    double multiplier = 1.0;
    if (!multipliers.empty()) {
      const auto& row = multipliers[is_long && multipliers.size() > 1 ? 1 : 0];
      multiplier = row[static_cast<std::size_t>(j)];
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

const Frequencies& FrequencyCache::at(const Plan& plan, std::int64_t length) {
  if (is_long(plan.params, length)) return plan.beyond;
  const double growth = alpha(plan.params, length);
  if (growth == 1.0) return plan.initial;
  if (plan.id != plan_ || length != length_) {
    made_ = plan.at(growth, false);
    plan_ = plan.id;
    length_ = length;
  }
  return made_;
}

Plan parse_plan(const std::string& spec) {
  Values values;
  for (const std::string_view part : split(spec, ';')) {
    const std::size_t equals = part.find('=');
    if (equals == std::string_view::npos) refuse("text", part);
    values.emplace(part.substr(0, equals), part.substr(equals + 1));
  }
  static std::atomic<std::uint64_t> last_id = 0;
  Plan plan;
  plan.id = ++last_id;
  plan.params = read_params(values);
  plan.rotation = read_rotation(values);
  check_fit(plan.rotation, plan.params);
  if (const auto rows = values.find("multipliers"); rows != values.end()) {
    for (const std::string_view row : split(rows->second, '|')) {
      plan.multipliers.push_back(numbers<double>("multipliers", row));
      if (std::cmp_less(plan.multipliers.back().size(), plan.params.num_frequencies)) refuse("multipliers", row);
    }
  }
  for (const std::int32_t axis : plan.rotation.axis) plan.axes = std::max(plan.axes, axis + 1);
  const Rotation& r = plan.rotation;
  plan.untouched = untouched(r);
  plan.splits = r.pairing == Pairing::kHalf && r.blocks == 1 && r.num_pairs % 2 == 0 && r.distance % 2 == 0 &&
                r.rotary_offset % 2 == 0;
  plan.initial = plan.at(1.0, false);
  if (plan.params.switch_length > 0) plan.beyond = plan.at(1.0, true);
  return plan;
}

}  // namespace rope
