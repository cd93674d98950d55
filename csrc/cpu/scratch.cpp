// The frequencies that a thread keeps from call to call.
#include "cpu/scratch.h"

#include "core/frequency.h"
#include "core/spec.h"

namespace rope {

const Frequencies& FrequencyCache::at(const Spec& spec, std::int64_t length) {
  if (is_long(spec.params, length)) return spec.beyond;
  const double growth = alpha(spec.params, length);
  if (growth == 1.0) return spec.initial;
  if (spec.id != spec_ || length != length_) {
    made_ = spec.at(growth, false);
    spec_ = spec.id;
    length_ = length;
  }
  return made_;
}

}  // namespace rope
