#pragma once
using dispatch_queue_t = void*;
using dispatch_data_t = void*;
