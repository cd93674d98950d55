// Runs the calls of a file through the launcher compiled for this machine: host_main CALLS RESULTS [backwards].
//
// CALLS, all integers of 64 bits: per call the length of its name and the name, the same for its text, its fields, the
// number of its regions, and for each region the address in the fields, its number of bytes, and the bytes. Every
// region becomes an allocation of its own. RESULTS: per call the length of an error and the error, then the bytes of
// its regions.
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "call.h"
#include "host.h"

namespace standin {
namespace {

struct Region {
  Int address;
  std::size_t bytes;
  std::unique_ptr<char[]> memory;  // aligned to 16 bytes as `address` is

  [[nodiscard]] char* data() const { return memory.get() + address % 16; }
};

Int read_int(std::istream& in) {
  Int value = 0;
  in.read(reinterpret_cast<char*>(&value), sizeof value);
  return value;
}

std::string read_text(std::istream& in) {
  std::string text(static_cast<std::size_t>(read_int(in)), '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  return text;
}

void write_text(std::ostream& out, const std::string& text) {
  const Int length = static_cast<Int>(text.size());
  out.write(reinterpret_cast<const char*>(&length), sizeof length);
  out << text;
}

std::vector<Region> read_regions(std::istream& in) {
  std::vector<Region> regions(static_cast<std::size_t>(read_int(in)));
  for (Region& region : regions) {
    region.address = read_int(in);
    region.bytes = static_cast<std::size_t>(read_int(in));
    region.memory.reset(new char[region.bytes + static_cast<std::size_t>(region.address % 16)]);
    in.read(region.data(), static_cast<std::streamsize>(region.bytes));
  }
  return regions;
}

void move(Int& address, const std::vector<Region>& regions) {
  for (const Region& region : regions) {
    const auto inside = static_cast<std::size_t>(address - region.address);
    if (address < region.address || inside >= region.bytes) continue;
    address = static_cast<Int>(reinterpret_cast<std::intptr_t>(region.data() + inside));
    return;
  }
}

void move_all(Call& call, const std::vector<Region>& regions) {
  for (auto& operand : call.operands) {
    move(operand.in, regions);
    move(operand.out, regions);
  }
  for (Int* address : {&call.positions.data, &call.offset.data, &call.seq_len.data, &call.from_seq_len.data,
                       &call.packed.bounds, &call.table.cosine, &call.table.sine}) {
    move(*address, regions);
  }
  for (auto& norm : call.norms) {
    for (Int* address : {&norm.weight, &norm.x, &norm.weight_grad}) move(*address, regions);
  }
  for (auto& cache : call.caches) {
    move(cache.data, regions);
    move(cache.scale, regions);
  }
  for (Int* address : {&call.slots.data, &call.v.data, &call.v_norm.weight}) move(*address, regions);
}

void run(std::istream& in, std::ostream& out) {
  std::cerr << read_text(in) << std::endl;  // a sanitizer's error is about the last one named
  const rope::Spec spec = rope::parse_spec(read_text(in));
  Call call;
  in.read(reinterpret_cast<char*>(&call), sizeof call);
  const std::vector<Region> regions = read_regions(in);
  move_all(call, regions);
  const char* error = launch(call, spec);
  write_text(out, error == nullptr ? "" : error);
  for (const Region& region : regions) out.write(region.data(), static_cast<std::streamsize>(region.bytes));
}

}  // namespace
}  // namespace standin

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  standin::backwards = argc > 3 && std::strcmp(argv[3], "backwards") == 0;
  std::ifstream in(argv[1], std::ios::binary);
  std::ofstream out(argv[2], std::ios::binary);
  while (in.peek() != std::ifstream::traits_type::eof()) standin::run(in, out);
  return out.flush() ? 0 : 1;
}
