// The cosines and sines of one token, and the head sizes that have code of their own. Included like cpu_vectors.h.
#include "cpu_vectors.h"

constexpr int kRegisters = ROPE_VECTOR == 64 ? 32 : 16;  // of vectors

/// Cosines and sines of one token, in natural or split order; a caller's table has its own for second members.
struct Turns {
  alignas(64) float cosine[kMaxPairs + kPad];
  alignas(64) float sine[kMaxPairs + kPad];
  alignas(64) float second_cosine[kMaxPairs];
  alignas(64) float second_sine[kMaxPairs];
};

/// Bytes of the widest vector whose lanes divide n.
constexpr int vector_for(int n) {
  int bytes = ROPE_VECTOR;
  while (n % (bytes / 4) != 0) bytes /= 2;
  return bytes;
}

/// Calls `heads` with the number of pairs as a constant, where it is a usual one; whether it was.
template <class HEADS>
ROPE_INLINE bool with_usual_pairs(int num_pairs, const HEADS& heads) {
  switch (num_pairs) {
    case 16:
      return heads(std::integral_constant<int, 16>()), true;
    case 32:
      return heads(std::integral_constant<int, 32>()), true;
    case 48:
      return heads(std::integral_constant<int, 48>()), true;
    case 64:
      return heads(std::integral_constant<int, 64>()), true;
    case 128:
      return heads(std::integral_constant<int, 128>()), true;
    default:
      return false;
  }
}

/// Where a token is: its sequence, and its place in it if positions are counted.
struct Place {
  std::int64_t batch, token, group, counted;
};

/// Calls `head(x, y)` for q's heads of a token and then for k's: what turns, as it is and where it goes.
template <class T, class HEAD>
ROPE_INLINE void for_each_head(const Job& job, const Place& at, const HEAD& head) {
  for (int i = 0; i < job.num_rows; ++i) {
    const Rows& rows = job.rows[i];
    const std::int32_t first = job.plan->rotation.rotary_offset;
    const T* x = static_cast<const T*>(rows.in) + at.batch * rows.from.batch + at.token * rows.from.token + first;
    T* y = static_cast<T*>(rows.out) + at.batch * rows.to.batch + at.token * rows.to.token + first;
    for (std::int64_t h = 0; h < rows.heads; ++h, x += rows.from.head, y += rows.to.head) head(x, y);
  }
}
