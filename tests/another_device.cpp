// A device of torch whose memory is the CPU's, and which is another device all the same: tensors on it cannot be
// computed with those of the CPU. Every operation is done by the CPU's kernels, on copies (`at::native::cpu_fallback`);
// here is what they cannot do, as it makes or looks at memory, and what they would not refuse.
//
// Leans on torch 2.13: the keys, hooks and guards that PrivateUse1 has for backends outside of torch.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/DispatchStub.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/native/transformers/sdp_utils_cpp.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <cstdlib>
#include <cstring>

using at::Tensor;
using c10::IntArrayRef;
using c10::SymIntArrayRef;
using std::optional;

namespace {

constexpr auto KIND = c10::DeviceType::PrivateUse1;
const c10::Device ONLY_ONE(KIND, 0);

// ---------------------------------------------------------------------------------------------------- memory

struct Allocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* data = bytes == 0 ? nullptr : std::malloc(bytes);
    return {data, data, &std::free, ONLY_ONE};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &std::free; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
};

Allocator allocator;
REGISTER_ALLOCATOR(KIND, &allocator);

// ----------------------------------------------------------------------------------- one device, one stream

struct Guard final : c10::impl::DeviceGuardImplInterface {
  static c10::Stream only_stream() { return c10::Stream(c10::Stream::DEFAULT, ONLY_ONE); }

  c10::DeviceType type() const override { return KIND; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  c10::Device getDevice() const override { return ONLY_ONE; }
  c10::Device exchangeDevice(c10::Device) const override { return ONLY_ONE; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return only_stream(); }
  c10::Stream getNewStream(c10::Device, int = 0) const override { return only_stream(); }
  c10::Stream exchangeStream(c10::Stream) const override { return only_stream(); }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}
  void record(void**, const c10::Stream&, c10::DeviceIndex, c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, c10::DeviceIndex) const noexcept override {}
};

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  void init() const override {}
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  at::Generator getNewGenerator(c10::DeviceIndex) const override {
    return at::make_generator<at::CPUGeneratorImpl>(c10::default_rng_seed_val);
  }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    static auto generator = at::make_generator<at::CPUGeneratorImpl>(c10::default_rng_seed_val);
    return generator;
  }
  at::Allocator* getPinnedMemoryAllocator() const override { return c10::GetAllocator(c10::DeviceType::CPU); }
  bool isPinnedPtr(const void*) const override { return false; }
};

Hooks hooks;
const bool has_hooks = (at::RegisterPrivateUse1HooksInterface(&hooks), true);

// ----------------------------------------------------------------------------------------------- operations

Tensor empty(
    IntArrayRef size,
    optional<at::ScalarType> dtype,
    optional<at::Layout>,
    optional<at::Device>,
    optional<bool>,
    optional<at::MemoryFormat> format) {
  const c10::DispatchKeySet keys(c10::DispatchKey::PrivateUse1);
  return at::detail::empty_generic(size, &allocator, keys, c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(
    IntArrayRef size,
    IntArrayRef stride,
    optional<at::ScalarType> dtype,
    optional<at::Layout>,
    optional<at::Device>,
    optional<bool>) {
  const c10::DispatchKeySet keys(c10::DispatchKey::PrivateUse1);
  return at::detail::empty_strided_generic(size, stride, &allocator, keys, c10::dtype_or_default(dtype));
}

// The same memory as a tensor of the CPU.
Tensor seen_from_the_cpu(const Tensor& tensor) {
  if (tensor.is_cpu()) return tensor;
  void* data = const_cast<void*>(tensor.unsafeGetTensorImpl()->data());
  return at::from_blob(data, tensor.sizes(), tensor.strides(), tensor.options().device(c10::kCPU));
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  if (to.numel() > 0) seen_from_the_cpu(to).copy_(seen_from_the_cpu(from).expand(to.sizes()));
  return to;
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  if (to.sizes() != from.sizes()) to.resize_(from.sizes());
  return copy_from(from, to, false);
}

at::Scalar local_scalar(const Tensor& tensor) { return seen_from_the_cpu(tensor).item(); }

const Tensor& resize(const Tensor& tensor, SymIntArrayRef symbolic_size, optional<at::MemoryFormat>) {
  const auto size = C10_AS_INTARRAYREF_SLOW(symbolic_size);
  const auto numbers = c10::multiply_integers(size) + tensor.storage_offset();
  const auto& storage = tensor.storage();
  const size_t before = storage.nbytes();
  const size_t needed = numbers * tensor.element_size();
  if (before < needed) {
    auto data = allocator.allocate(needed);
    if (before > 0) std::memcpy(data.get(), storage.data(), before);
    storage.set_data_ptr_noswap(std::move(data));
    storage.set_nbytes(needed);
  }
  tensor.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  return tensor;
}

Tensor& set_storage(Tensor& tensor, at::Storage storage, int64_t offset, IntArrayRef size, IntArrayRef stride) {
  tensor.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(storage));
  tensor.unsafeGetTensorImpl()->set_storage_offset(offset);
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride);
  return tensor;
}

Tensor view(const Tensor& tensor, SymIntArrayRef size) {
  return at::native::view(tensor, C10_AS_INTARRAYREF_SLOW(size));
}

Tensor as_strided(const Tensor& tensor, SymIntArrayRef size, SymIntArrayRef stride, optional<c10::SymInt> offset) {
  optional<int64_t> start;
  if (offset.has_value()) start = offset->guard_int(__FILE__, __LINE__);
  return at::native::as_strided_tensorimpl(
      tensor, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), start);
}

Tensor reshape_alias(const Tensor& tensor, SymIntArrayRef size, SymIntArrayRef stride) {
  return at::native::_reshape_alias(tensor, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride));
}

int64_t kernel_of_attention(
    const Tensor&,
    const Tensor&,
    const Tensor&,
    const optional<Tensor>&,
    double,
    bool,
    optional<double>,
    bool) {
  return static_cast<int64_t>(sdp::SDPBackend::math);
}

// As on a GPU: single numbers may come from the CPU. So may indices, which come as a list of optional tensors.
void refuse_tensors_of_the_cpu(const c10::OperatorHandle& operation, const torch::jit::Stack& stack) {
  const auto& schema = operation.schema();
  const auto refuse = [&](const Tensor& tensor) {
    const bool is_refused = tensor.defined() && tensor.is_cpu() && tensor.dim() > 0;
    TORCH_CHECK(!is_refused, schema.name(), ": expected all tensors to be on the same device, and one is on the CPU");
  };
  for (const auto& argument : torch::jit::last(stack, schema.arguments().size())) {
    if (argument.isTensor()) refuse(argument.toTensor());
    if (argument.isTensorList()) {
      for (const auto& tensor : argument.toTensorVector()) refuse(tensor);
    }
  }
}

void by_the_cpu(const c10::OperatorHandle& operation, torch::jit::Stack* stack) {
  refuse_tensors_of_the_cpu(operation, *stack);
  at::native::cpu_fallback(operation, stack);
}

} // namespace

namespace at::native {
REGISTER_PRIVATEUSE1_DISPATCH(_fused_sdp_choice_stub, &kernel_of_attention);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&by_the_cpu>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("empty.memory_format", empty);
  library.impl("empty_strided", empty_strided);
  library.impl("_copy_from", copy_from);
  library.impl("_copy_from_and_resize", copy_from_and_resize);
  library.impl("_local_scalar_dense", local_scalar);
  library.impl("resize_", resize);
  library.impl("set_.source_Storage_storage_offset", set_storage);
  library.impl("view", view);
  library.impl("as_strided", as_strided);
  library.impl("_reshape_alias", reshape_alias);
}

// Autocast: products in 16 bits, as on every device; what else it does differs from device to device.
TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFallthrough());
}

TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  KERNEL_PRIVATEUSEONE(mm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(bmm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(mv, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(addmm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(baddbmm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(matmul, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(linear, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(scaled_dot_product_attention, lower_precision_fp)
}
