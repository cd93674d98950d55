// parse_spec: the Spec of a good text, and the error of a bad one, which names its field.
#include <cmath>
#include <random>
#include <stdexcept>
#include <string>

#include "core/job.h"
#include "cpu/scratch.h"
#include "harness.h"

namespace {

const std::string kGood = "theta=10000.0;freq_dim=8;num_frequencies=4;head_dim=8;num_pairs=4;distance=4";

/// The error of parse_text; "" if it takes it, "?" if it throws anything but std::invalid_argument.
std::string complaint(const std::string& text) {
  try {
    rope::parse_text(text);
    return "";
  } catch (const std::invalid_argument& error) {
    return error.what();
  } catch (...) {
    return "?";
  }
}

void check_refused(const std::string& field, const std::string& text) {
  const std::string said = complaint(text);
  CHECK(said.starts_with("spec: " + field + " is '"), field, text, said);
}

TEST(defaults) {
  const rope::Spec spec = rope::parse_spec(kGood);
  CHECK(spec.params.theta == 10000.0 && spec.params.freq_dim == 8 && spec.params.rotated == 4);
  CHECK(spec.params.factor == 1.0 && spec.params.scaling == 1.0 && spec.params.long_scaling == 1.0);
  CHECK(spec.rotation.pairing == rope::Pairing::kHalf && spec.rotation.phase == rope::Phase::kExact);
  CHECK(spec.axes == 1 && spec.splits && spec.untouched.empty() && spec.multipliers.empty());
  CHECK(spec.initial.radians.size() == 4 && spec.initial.radians[0] == 1.0);
  CHECK(std::fabs(spec.initial.radians[1] - 0.1) < 1e-16, spec.initial.radians[1]);
}

TEST(every_field_is_read) {
  const rope::Spec spec = rope::parse_spec(
      "theta=1e6;freq_dim=16;num_frequencies=4;rotated=3;factor=4.0;ramp=-0.5,0.25,1.5;attention_scaling=1.25;"
      "long_attention_scaling=0.75;multipliers=1,2,3,4|5,6,7,8;switch_length=32;dynamic_factor=2.0;dynamic_length=64;"
      "head_dim=20;num_pairs=4;distance=4;rotary_offset=2;pairing=interleaved;axis=0,1,2,0;freq_index=3,2,1,0;"
      "phase=float32;table_dtype=bfloat16");
  const rope::FrequencyParams& p = spec.params;
  CHECK(p.theta == 1e6 && p.freq_dim == 16 && p.num_frequencies == 4 && p.rotated == 3 && p.factor == 4.0);
  CHECK(p.ramp_index == -0.5 && p.ramp_frequency == 0.25 && p.ramp_start == 1.5);
  CHECK(p.scaling == 1.25 && p.long_scaling == 0.75 && p.switch_length == 32);
  CHECK(p.dynamic_factor == 2.0 && p.dynamic_length == 64);
  const rope::Rotation& r = spec.rotation;
  CHECK(r.head_dim == 20 && r.num_pairs == 4 && r.distance == 4 && r.rotary_offset == 2 && r.blocks == 1);
  CHECK(r.pairing == rope::Pairing::kInterleaved && r.phase == rope::Phase::kFloat32);
  CHECK(r.table_dtype == rope::Number::kBFloat16 && r.frequency_of(0) == 3 && spec.axes == 3);
  CHECK(spec.multipliers.size() == 2 && spec.multipliers[1][3] == 8.0);
  CHECK(spec.initial.radians[0] == 0.0 && spec.beyond.radians[3] == 5.0 * spec.initial.radians[3]);
}

TEST(channels_that_are_not_rotated) {
  const auto spans = [](const std::string& rest) {
    std::string text;
    for (const rope::Span& s :
         rope::parse_spec("theta=1e4;freq_dim=8;num_frequencies=4;num_pairs=4;" + rest).untouched) {
      text += std::to_string(s.first) + "-" + std::to_string(s.last) + " ";
    }
    return text;
  };
  CHECK(spans("head_dim=8;distance=4").empty());
  CHECK(spans("head_dim=12;distance=4") == "8-12 ");
  CHECK(spans("head_dim=12;distance=4;rotary_offset=3") == "0-3 11-12 ");
  CHECK(spans("head_dim=16;distance=8") == "4-8 12-16 ");
  CHECK(spans("head_dim=16;distance=8;pairing=interleaved") == "8-16 ");
  CHECK(spans("head_dim=9;distance=2;blocks=2") == "8-9 ");
}

TEST(frequencies_keep_both_orders) {
  const rope::Spec spec = rope::parse_spec(kGood);
  const rope::Frequencies& f = spec.initial;
  for (std::size_t i = 0; i < 4; ++i) {
    const std::uint64_t turns = rope::fixed_point_turns(f.radians[i]);
    CHECK((std::uint64_t{f.high[i]} << 32 | f.low[i]) == turns, i);
    const std::size_t slot = (i % 2) * 2 + i / 2;
    CHECK(f.split_low[slot] == f.low[i] && f.split_high[slot] == f.high[i], i);
  }
}

TEST(a_length_chooses_its_frequencies) {
  const rope::Spec spec = rope::parse_spec(kGood + ";dynamic_factor=2.0;dynamic_length=16");
  rope::FrequencyCache cache;
  CHECK(&cache.at(spec, 16) == &spec.initial);
  const double grown = cache.at(spec, 48).radians[1];
  CHECK(std::fabs(grown - 0.1 * std::pow(5.0, -2.0 / 6)) < 1e-16, grown);
  CHECK(cache.at(spec, 24).radians[1] > grown && cache.at(spec, 48).radians[1] == grown);
}

TEST(numbers_must_be_numbers) {
  for (const char* field : {"theta", "factor", "attention_scaling", "long_attention_scaling", "dynamic_factor"}) {
    for (const char* value : {"", "x", "1.0x", "0x10", " 1.0", "1e999"}) {
      const std::string part = std::string(field) + "=" + value;
      check_refused(field, std::string(field) == "theta" ? part + kGood.substr(13) : kGood + ";" + part);
    }
  }
  for (const char* field : {"rotated", "switch_length", "dynamic_length", "rotary_offset", "blocks"}) {
    for (const char* value : {"", "x", "1.5", "99999999999999999999"}) {
      check_refused(field, kGood + ";" + field + "=" + value);
    }
  }
}

TEST(names_must_be_known) {
  check_refused("pairing", kGood + ";pairing=halves");
  check_refused("phase", kGood + ";phase=");
  check_refused("table_dtype", kGood + ";table_dtype=float8");
}

TEST(lists_must_be_lists_of_the_right_length) {
  check_refused("ramp", kGood + ";ramp=1.0,2.0");
  check_refused("ramp", kGood + ";ramp=1.0,2.0,3.0,4.0");
  check_refused("ramp", kGood + ";ramp=1.0,,3.0");
  check_refused("axis", kGood + ";axis=0,0,1");
  check_refused("axis", kGood + ";axis=0,0,-1,0");
  check_refused("axis", kGood + ";axis=0,a,0,0");
  check_refused("freq_index", kGood + ";freq_index=0,1,2");
  check_refused("freq_index", kGood + ";freq_index=0,1,2,4");
  check_refused("freq_index", kGood + ";freq_index=0,-1,2,3");
  check_refused("multipliers", kGood + ";multipliers=1,1,1");
  check_refused("multipliers", kGood + ";multipliers=1,1,1,1|1,1,1");
  check_refused("multipliers", kGood + ";multipliers=1,1,,1");
}

TEST(geometry_must_fit_the_head) {
  const std::string base = "theta=1e4;freq_dim=8;num_frequencies=4;";
  check_refused("num_pairs", base + "head_dim=8;distance=4;num_pairs=0");
  check_refused("num_pairs", base + "head_dim=8;distance=4;num_pairs=-4");
  check_refused("num_pairs", base + "head_dim=16384;distance=4;num_pairs=4097");
  check_refused("num_frequencies", base + "head_dim=10;distance=5;num_pairs=5");
  check_refused("head_dim", base + "head_dim=7;distance=4;num_pairs=4");
  check_refused("head_dim", base + "head_dim=8;distance=4;num_pairs=4;rotary_offset=1");
  check_refused("head_dim", base + "head_dim=8;distance=5;num_pairs=4");
  check_refused("rotary_offset", base + "head_dim=8;distance=4;num_pairs=4;rotary_offset=-1");
  check_refused("distance", base + "head_dim=8;distance=3;num_pairs=4");
  check_refused("distance", base + "head_dim=16;distance=8;num_pairs=4;pairing=interleaved_to_half");
  check_refused("blocks", base + "head_dim=8;distance=4;num_pairs=4;blocks=0");
  check_refused("blocks", base + "head_dim=32;distance=2;num_pairs=4;blocks=3");
}

TEST(frequencies_must_be_finite) {
  check_refused("inv_freq", "theta=0.0;freq_dim=8;num_frequencies=4;head_dim=8;num_pairs=4;distance=4");
  check_refused("theta", "theta=nan;freq_dim=8;num_frequencies=4;head_dim=8;num_pairs=4;distance=4");
  check_refused("multipliers", kGood + ";multipliers=1,inf,1,1");
  check_refused("inv_freq", kGood + ";factor=0.0;ramp=0,0,0");
}

TEST(keys_must_be_known_and_come_once) {
  for (const std::string key : {"pairng", "Pairing", "pairing ", "", "rope_theta", "multiplier"}) {
    CHECK(complaint(kGood + ";" + key + "=half").starts_with("spec: unknown key '" + key + "', allowed are theta, "));
  }
  for (const char* part : {"theta=10000.0", "distance=4", "theta=5.0"}) {
    const std::string key = std::string(part).substr(0, std::string(part).find('='));
    CHECK(complaint(kGood + ";" + part) == "spec: key '" + key + "' comes twice", part);
  }
  CHECK(complaint(kGood + ";pairing=half;pairing=half") == "spec: key 'pairing' comes twice");
}

TEST(required_keys_must_be_there) {
  const std::string parts[] = {"theta=10000.0", "freq_dim=8",  "num_frequencies=4",
                               "head_dim=8",    "num_pairs=4", "distance=4"};
  for (const std::string& left_out : parts) {
    std::string text;
    for (const std::string& part : parts) {
      if (part != left_out) text += (text.empty() ? "" : ";") + part;
    }
    CHECK(complaint(text) == "spec: key '" + left_out.substr(0, left_out.find('=')) + "' is missing", text);
  }
}

TEST(norms) {
  const rope::Operation operation = rope::parse_text(kGood + "@thd,k_norm=1e-06|1.0|after,unscaled");
  const rope::Norm& k = operation.norms[1];
  CHECK(!operation.norms[0].is_given && k.is_given && operation.unscaled);
  CHECK(k.eps == 1e-6 && k.weight_offset == 1.0 && k.after_rope);
  CHECK(!rope::parse_text(kGood + "@bshd,q_norm=0.0|-0.5|before").norms[0].after_rope);
  CHECK(!rope::parse_text(kGood).norms[0].is_given);
  for (const std::string value : {"", "1e-6", "1e-6|0.0", "1e-6|0.0|later", "x|0.0|after", "-1|0.0|after",
                                  "1e-6|nan|after", "inf|0.0|after", "1e-6|0.0|after|1"}) {
    CHECK(complaint(kGood + "@bshd,q_norm=" + value).starts_with("spec: q_norm is '"), value);
  }
  CHECK(complaint(kGood + "@bshd,q_norm=0|0|after,q_norm=0|0|after") == "spec: flag 'q_norm' comes twice");
}

TEST(layouts_and_flags) {
  for (const bool inverse : {false, true}) {
    for (const bool unscaled : {false, true}) {
      const std::string flags = std::string(inverse ? ",inverse" : "") + (unscaled ? ",unscaled" : "");
      const rope::Operation operation = rope::parse_text(kGood + "@thd" + flags);
      CHECK(operation.inverse == inverse && operation.unscaled == unscaled && operation.layout.batch == -1, flags);
      CHECK(operation.layout.rank() == 3 && operation.spec.rotation.head_dim == 8);
    }
  }
  CHECK(rope::parse_text(kGood + "@thd,unscaled,inverse").inverse);
  CHECK(rope::parse_text(kGood).layout.heads == 2 && rope::parse_text(kGood + "@bhsd").layout.heads == 1);
  for (const std::string word : {"bhdd", "", "BSHD", "thd "}) {
    CHECK(complaint(kGood + "@" + word) == "spec: unknown layout '" + word + "', allowed are bshd, bhsd, sbhd, thd");
  }
  for (const std::string flag : {"invers", "", "inverse=1"}) {
    CHECK(complaint(kGood + "@bshd," + flag) ==
          "spec: unknown flag '" + flag + "', allowed are inverse, unscaled, q_norm, k_norm, v_norm");
  }
  CHECK(complaint(kGood + "@bshd,inverse,inverse") == "spec: flag 'inverse' comes twice");
  CHECK(complaint(kGood + "@bshd@bshd") == "spec: unknown layout 'bshd@bshd', allowed are bshd, bhsd, sbhd, thd");
}

TEST(text_must_be_fields) {
  check_refused("text", "");
  check_refused("text", kGood + ";;");
  check_refused("text", "llama3");
}

TEST(mangled_specs_do_no_harm) {
  // The result is an operation or an error that names a field; the sanitizers watch for anything else.
  std::mt19937 random(7);
  const std::string whole =
      kGood + ";rotated=3;ramp=0,0,1;multipliers=1,2,3,4;axis=0,1,0,1;freq_index=0,1,2,3;blocks=1";
  for (int i = 0; i < 20'000; ++i) {
    std::string text = whole;
    for (unsigned n = random() % 3 + 1; n > 0; --n) {
      const std::size_t at = random() % text.size();
      if (random() % 2) {
        text[at] = "0123456789-.,;=|ex@"[random() % 19];
      } else {
        text.erase(at, random() % 4 + 1);
      }
    }
    const std::string said = complaint(text);
    CHECK(said.empty() || said.starts_with("spec: "), text, said);
  }
}

}  // namespace
