// Memory of one call, aligned to cache lines and not initialised.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

namespace lnb {

template <typename T>
class Workspace {
  public:
    // Throws std::bad_alloc where there is not enough memory.
    explicit Workspace(int64_t count)
        : data_(static_cast<T*>(::operator new(static_cast<size_t>(count) * sizeof(T), kAlignment))) {}
    ~Workspace() { ::operator delete(data_, kAlignment); }
    Workspace(const Workspace&) = delete;
    Workspace& operator=(const Workspace&) = delete;

    T* get() const { return data_; }

  private:
    static constexpr std::align_val_t kAlignment{64};
    T* data_;
};

// How far apart to lay rows of so many floats. Rows a power of two apart share few sets of a first-level cache, whose
// ways a product's columns would overflow.
constexpr int64_t apart(int64_t columns) {
    return columns % 128 == 0 ? columns + 16 : columns;
}

}  // namespace lnb
