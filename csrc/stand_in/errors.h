// The errors of CUDA that the stand-in returns. The runtime and the driver use the same numbers.
#pragma once

namespace vitcache::stand_in {

constexpr int kSuccess = 0;
constexpr int kInvalidValue = 1;
constexpr int kMemoryAllocation = 2;
constexpr int kInitializationError = 3;
constexpr int kInvalidPitch = 12;
constexpr int kInvalidDevice = 101;
constexpr int kInvalidContext = 201;
constexpr int kOperatingSystem = 304;
constexpr int kInvalidHandle = 400;
constexpr int kIllegalState = 401;
constexpr int kNotReady = 600;
constexpr int kIllegalAddress = 700;
constexpr int kAlreadyRegistered = 712;
constexpr int kNotRegistered = 713;
constexpr int kCaptureUnsupported = 900;
constexpr int kCaptureInvalidated = 901;
constexpr int kCaptureMerge = 902;
constexpr int kCaptureUnmatched = 903;
constexpr int kCaptureUnjoined = 904;
constexpr int kCaptureIsolation = 905;
constexpr int kCaptureImplicit = 906;
constexpr int kCapturedEvent = 907;
constexpr int kCaptureWrongThread = 908;

// CUDA's name of `error`. An error that the stand-in returns only when a test injects it is
// "cudaErrorInjected".
constexpr const char* error_name(int error) {
  switch (error) {
    case kSuccess:
      return "cudaSuccess";
    case kInvalidValue:
      return "cudaErrorInvalidValue";
    case kMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case kInitializationError:
      return "cudaErrorInitializationError";
    case kInvalidPitch:
      return "cudaErrorInvalidPitchValue";
    case kInvalidDevice:
      return "cudaErrorInvalidDevice";
    case kInvalidContext:
      return "cudaErrorDeviceUninitialized";
    case kOperatingSystem:
      return "cudaErrorOperatingSystem";
    case kInvalidHandle:
      return "cudaErrorInvalidResourceHandle";
    case kIllegalState:
      return "cudaErrorIllegalState";
    case kNotReady:
      return "cudaErrorNotReady";
    case kIllegalAddress:
      return "cudaErrorIllegalAddress";
    case kAlreadyRegistered:
      return "cudaErrorHostMemoryAlreadyRegistered";
    case kNotRegistered:
      return "cudaErrorHostMemoryNotRegistered";
    case kCaptureUnsupported:
      return "cudaErrorStreamCaptureUnsupported";
    case kCaptureInvalidated:
      return "cudaErrorStreamCaptureInvalidated";
    case kCaptureMerge:
      return "cudaErrorStreamCaptureMerge";
    case kCaptureUnmatched:
      return "cudaErrorStreamCaptureUnmatched";
    case kCaptureUnjoined:
      return "cudaErrorStreamCaptureUnjoined";
    case kCaptureIsolation:
      return "cudaErrorStreamCaptureIsolation";
    case kCaptureImplicit:
      return "cudaErrorStreamCaptureImplicit";
    case kCapturedEvent:
      return "cudaErrorCapturedEvent";
    case kCaptureWrongThread:
      return "cudaErrorStreamCaptureWrongThread";
    default:
      return "cudaErrorInjected";
  }
}

}  // namespace vitcache::stand_in
