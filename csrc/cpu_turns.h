// The cosines and sines of one token, and the head sizes that have code of their own. Included like cpu_vectors.h.
#include "cpu_vectors.h"

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
