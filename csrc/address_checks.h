// What both native modules check of the addresses and sizes that Python hands them: what would crash, or give results
// that depend on timing.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <vector>

#include "types.h"

namespace lnb {

using Addresses = std::vector<uintptr_t>;
using Sizes = std::vector<int64_t>;

inline std::string label(const std::string& list, size_t i) {
    return list + "[" + std::to_string(i) + "]";
}

// Entries of a tensor, of which the widest have 8 bytes: more cannot be counted in bytes.
constexpr int64_t kMostEntries = INT64_MAX / 8;

// The product of sizes.
inline int64_t entries(const std::string& name, std::initializer_list<int64_t> sizes) {
    int64_t product = 1;
    for (const int64_t size : sizes) {
        if (size < 0) throw std::invalid_argument(name + " has a negative size, " + std::to_string(size));
        if (size > 0 && product > kMostEntries / size) {
            throw std::invalid_argument(name + " has more entries than can be counted");
        }
        product *= size;
    }
    return product;
}

inline void check_memory(const std::string& name, uintptr_t address, int64_t size, Type type) {
    if (entries(name, {size}) == 0) return;
    if (address == 0) {
        throw std::invalid_argument(name + " has entries but a null pointer; pass a tensor whose memory is allocated");
    }
    if (address % width(type) != 0) {
        throw std::invalid_argument(name + " is not aligned to its dtype: its address " + std::to_string(address) +
                                    " is no multiple of " + std::to_string(width(type)) +
                                    "; use .clone() to get one that is");
    }
}

inline void check_addresses(const char* list, const Addresses& addresses, const Sizes& sizes, Type type) {
    if (addresses.size() != sizes.size()) throw std::invalid_argument(std::string(list) + ": one size per address");
    for (size_t i = 0; i < sizes.size(); ++i) {
        // The names of hundreds of tensors are not made for nothing.
        const bool countable = sizes[i] >= 0 && sizes[i] <= kMostEntries;
        if (countable && addresses[i] != 0 && addresses[i] % width(type) == 0) continue;
        check_memory(label(list, i), addresses[i], sizes[i], type);
    }
}

inline Sizes bytes(const Sizes& sizes, Type type) {
    Sizes result(sizes);
    for (int64_t& size : result) size *= width(type);
    return result;
}

// A list of a call: its name, and where its tensors lie.
struct Memory {
    std::string list;
    Addresses addresses;
    Sizes bytes;
    bool written;
};

// Writing to memory that is also read or written through another tensor gives results that depend on timing.
inline void require_disjoint_writes(const std::vector<Memory>& lists) {
    struct Extent {
        uintptr_t begin, end;
        const Memory* list;
        size_t index;
    };
    std::vector<Extent> extents;
    for (const Memory& list : lists) {
        if (list.addresses.size() != list.bytes.size())
            throw std::invalid_argument(list.list + ": one size per address");
        for (size_t i = 0; i < list.bytes.size(); ++i) {
            if (list.bytes[i] <= 0) continue;
            extents.push_back({list.addresses[i], list.addresses[i] + static_cast<uintptr_t>(list.bytes[i]), &list, i});
        }
    }
    std::sort(extents.begin(), extents.end(), [](const Extent& a, const Extent& b) { return a.begin < b.begin; });
    const Extent* reach = nullptr;          // of all so far, the one that ends last
    const Extent* written_reach = nullptr;  // the same among those written
    for (const Extent& extent : extents) {
        const Extent* other = extent.list->written ? reach : written_reach;
        if (other != nullptr && other->end > extent.begin) {
            throw std::invalid_argument(label(extent.list->list, extent.index) + " and " +
                                        label(other->list->list, other->index) +
                                        " overlap in memory, and one of them is written; give each its own memory");
        }
        if (reach == nullptr || extent.end > reach->end) reach = &extent;
        if (extent.list->written && (written_reach == nullptr || extent.end > written_reach->end)) {
            written_reach = &extent;
        }
    }
}

}  // namespace lnb
