"""Loads, stores, moves, special registers, memory as tensors see it, and what is counted."""

import itertools

import numpy as np
import pytest
import torch

from emulation.ptx import Memory, Program, PTXError, run
from emulation.ptx.execute import ACCESSES, MOVES
from emulation.ptx.types import TYPES

BYTES = np.frombuffer(bytes(range(1, 129)) + bytes(range(255, 127, -1)), np.uint8)


def launch(body, arguments, tensors, grid=(1,), block=(1,), parameters=".param .u64 x, .param .u64 y", **options):
    """Run a kernel of that body on ``tensors`` (by name) and ``arguments``."""
    text = f"""
        .target sm_90
        .extern .shared .align 16 .b8 shared[];
        .visible .entry kernel({parameters})
        {{
            .reg .pred %p<9>; .reg .b16 %h<9>; .reg .b32 %r<9>; .reg .b64 %a<9>;
            ld.param.u64 %a0, [x]; ld.param.u64 %a1, [y];
            {body}
            ret;
        }}"""
    memory = Memory()
    for name, tensor in tensors.items():
        memory.add_tensor(name, tensor)
    return run(Program.parse(text).kernels["kernel"], grid, block, arguments, memory, **options)


def registers(access):
    size = max(TYPES[access.type].itemsize, 2)
    names = [f"%{ {2: 'h', 4: 'r', 8: 'a'}[size] }{4 + i}" for i in range(access.count)]
    return "{" + ", ".join(names) + "}" if access.count > 1 else names[0]


@pytest.mark.parametrize("name", sorted(n for n in ACCESSES if n.startswith("ld")))
def test_load_and_store(name):
    """Bytes 32 to 47 of x, as a struct parameter, in global or through shared memory, go to y."""
    access = ACCESSES[name]
    space, values = access.space, registers(access)
    store = name.replace("ld", "st", 1).replace(space, "global")
    nbytes = access.count * TYPES[access.type].itemsize
    where = {"global": "[%a0+32]", "param": "[struct+32]", "shared": "[%r0+16]"}[space]
    words = "{%r1, %r2, %r3, %r4}"
    fill = f"mov.u32 %r0, shared; ld.global.v4.u32 {words}, [%a0+32]; st.shared.v4.u32 [%r0+16], {words};"
    body = f"{fill if space == 'shared' else ''} {name} {values}, {where}; {store} [%a1+16], {values};"
    x, y = torch.from_numpy(BYTES.copy()), torch.zeros(64, dtype=torch.uint8)
    counts = launch(
        body, [x.data_ptr(), y.data_ptr(), BYTES], {"x": x, "y": y}, shared_bytes=32,
        parameters=".param .u64 x, .param .u64 y, .param .align 16 .b8 struct[256]",
    )  # fmt: skip
    assert y[16 : 16 + nbytes].tolist() == BYTES[32 : 32 + nbytes].tolist()
    assert not y[:16].any()
    assert not y[16 + nbytes :].any()
    assert counts.stores == {nbytes: 1}


@pytest.mark.parametrize("name", sorted(n for n in ACCESSES if n.startswith("st.shared")))
def test_store_to_shared_memory(name):
    values = registers(ACCESSES[name])
    nbytes = ACCESSES[name].count * TYPES[ACCESSES[name].type].itemsize
    load = name.replace("st.shared", "ld.global")
    body = f"mov.u32 %r0, shared; {load} {values}, [%a0]; {name} [%r0], {values}; "
    body += "".join(f"ld.shared.u8 %h0, [%r0+{i}]; st.global.u8 [%a1+{i}], %h0; " for i in range(nbytes))
    x, y = torch.from_numpy(BYTES.copy()), torch.zeros(16, dtype=torch.uint8)
    launch(body, [x.data_ptr(), y.data_ptr()], {"x": x, "y": y}, shared_bytes=16)
    assert y[:nbytes].tolist() == BYTES[:nbytes].tolist()


@pytest.mark.parametrize("name", ["ld.global.s8", "ld.global.u8", "ld.global.s16", "ld.global.s32", "ld.global.u32"])
def test_loads_extend_to_wider_registers(name):
    type_ = TYPES[name[-3:] if name[-2].isdigit() else name[-2:]]
    x, y = torch.tensor([-2], dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    launch(f"{name} %a2, [%a0]; st.global.u64 [%a1], %a2;", [x.data_ptr(), y.data_ptr()], {"x": x, "y": y})
    assert y.item() == int(np.array([-2]).view(np.int64).astype(type_)[0])


def test_stores_take_the_lower_part_of_wider_registers():
    x, y = torch.tensor([0x1234567890ABCDEF]), torch.zeros(1, dtype=torch.int32)
    launch("ld.global.u64 %a2, [%a0]; st.global.u16 [%a1], %a2;", [x.data_ptr(), y.data_ptr()], {"x": x, "y": y})
    assert y.item() == 0xCDEF


@pytest.mark.parametrize("name", sorted(set(MOVES) - {"mov.pred"}))
def test_move(name):
    size = TYPES[MOVES[name]].itemsize
    register = {2: "%h", 4: "%r", 8: "%a"}[size]
    x, y = torch.from_numpy(BYTES.copy()), torch.zeros(8, dtype=torch.uint8)
    type_ = f"global.u{8 * size}"
    body = f"ld.{type_} {register}5, [%a0]; {name} {register}6, {register}5; st.{type_} [%a1], {register}6;"
    launch(body, [x.data_ptr(), y.data_ptr()], {"x": x, "y": y})
    assert y[:size].tolist() == BYTES[:size].tolist()


def test_move_of_predicates_and_constants():
    body = """
        mov.u32 %r0, %tid.x; setp.lt.u32 %p0, %r0, 2; mov.pred %p1, %p0; mov.pred %p2, -1; and.pred %p1, %p1, %p2;
        mov.b32 %r1, 0f40490FDB; mov.b32 %r2, -1; selp.b32 %r3, %r1, %r2, %p1;
        mul.wide.u32 %a2, %r0, 4; add.s64 %a2, %a1, %a2; st.global.b32 [%a2], %r3;
    """
    y = torch.zeros(4, dtype=torch.int32)
    launch(body, [0, y.data_ptr()], {"y": y}, block=(4,))
    assert y.tolist() == [0x40490FDB, 0x40490FDB, -1, -1]


def test_packing_and_unpacking():
    body = """
        ld.global.u64 %a2, [%a0]; mov.b64 {%r0, %r1}, %a2; mov.b32 {%h0, %h1}, %r0; mov.b32 {_, %h3}, %r1;
        mov.b32 %r2, {%h1, %h0}; mov.b64 %a3, {%r2, %r0}; mov.b64 {%h4, %h5, %h6, %h7}, %a2;
        mov.b64 %a4, {%h7, %h6, %h5, %h3}; st.global.v2.u64 [%a1], {%a3, %a4};
    """
    x, y = torch.tensor([0x1111222233334444]), torch.zeros(2, dtype=torch.int64)
    launch(body, [x.data_ptr(), y.data_ptr()], {"x": x, "y": y})
    assert y.tolist() == [0x3333444444443333, 0x1111333322221111]


def test_scopes_of_registers():
    body = "mov.u32 %r0, 1; { .reg .b32 %r<2>; .reg .b32 t; mov.u32 %r0, 2; mov.u32 t, 3; } st.global.u32 [%a1], %r0;"
    y = torch.zeros(1, dtype=torch.int32)
    launch(body, [0, y.data_ptr()], {"y": y})
    assert y.item() == 1


@pytest.mark.parametrize("shape", [((5, 1, 1), (40, 1, 1)), ((2, 3, 2), (4, 2, 3))])
def test_special_registers(shape):
    grid, block = shape
    names = [f"{n}{what}.{axis}" for what in ("tid", "ctaid") for n in ("", "n") for axis in "xyz"]
    names += ["laneid", "warpid"]
    threads, ctas = np.prod(block), np.prod(grid)
    body = """
        mov.u32 %r0, %ctaid.z; mov.u32 %r1, %nctaid.y; mov.u32 %r2, %ctaid.y; mad.lo.s32 %r0, %r0, %r1, %r2;
        mov.u32 %r1, %nctaid.x; mov.u32 %r2, %ctaid.x; mad.lo.s32 %r0, %r0, %r1, %r2;
        mov.u32 %r1, %ntid.z; mov.u32 %r2, %tid.z; mad.lo.s32 %r0, %r0, %r1, %r2;
        mov.u32 %r1, %ntid.y; mov.u32 %r2, %tid.y; mad.lo.s32 %r0, %r0, %r1, %r2;
        mov.u32 %r1, %ntid.x; mov.u32 %r2, %tid.x; mad.lo.s32 %r0, %r0, %r1, %r2;
        mul.wide.u32 %a2, %r0, 56; add.s64 %a2, %a1, %a2;
    """
    body += "".join(f"mov.u32 %r1, %{name}; st.global.u32 [%a2+{4 * i}], %r1; " for i, name in enumerate(names))
    y = torch.zeros(ctas * threads, len(names), dtype=torch.int32)
    launch(body, [0, y.data_ptr()], {"y": y}, grid, block)
    places = itertools.product(*(range(n) for n in (*grid[::-1], *block[::-1])))
    for row, (cz, cy, cx, z, y_, x) in zip(y.tolist(), places, strict=True):
        place = x + block[0] * (y_ + block[1] * z)
        assert row == [x, y_, z, *block, cx, cy, cz, *grid, place % 32, place // 32]


def test_arguments():
    body = """
        ld.param.f32 %r0, [f]; ld.param.f64 %a2, [d]; ld.param.s32 %r1, [i]; ld.param.u8 %h0, [flag];
        mov.b64 %a3, s; add.s64 %a3, %a3, 4; ld.param.u32 %r2, [%a3+4]; cvt.u32.u16 %r3, %h0;
        st.global.u64 [%a1], %a2; st.global.v4.u32 [%a1+16], {%r0, %r1, %r2, %r3};
    """
    y = torch.zeros(4, dtype=torch.int64)
    struct = np.arange(12, dtype=np.uint8)
    parameters = """.param .u64 .ptr .global .align 1 x, .param .u64 y, .param .f32 f, .param .f64 d, .param .u32 i,
        .param .u8 flag, .param .align 8 .b8 s[12]"""
    arguments = [0, y.data_ptr(), 1.5, 2.5, -3, True, struct.tobytes()]
    launch(body, arguments, {"y": y}, parameters=parameters)
    assert y.view(torch.float64)[0] == 2.5
    assert y.view(torch.float32)[4] == 1.5
    assert y.view(torch.int32)[5:].tolist() == [-3, 0x0B0A0908, 1]
    with pytest.raises(PTXError, match="11 bytes, not 12"):
        launch(body, [*arguments[:-1], struct[:-1]], {"y": y}, parameters=parameters)
    beyond = "ld.param.u64 %a2, [s+8];"
    with pytest.raises(PTXError, match="out of bounds of the parameters"):
        launch(beyond, arguments, {"y": y}, parameters=parameters)


STORE = """
    mov.u32 %r0, %tid.x; mul.wide.u32 %a2, %r0, 2; add.s64 %a2, %a1, %a2; mov.u16 %h0, 7; st.global.u16 [%a2], %h0;
"""


class TestMemory:
    def test_two_views_of_one_storage(self):
        qkv = torch.zeros(3, 8, dtype=torch.int16)
        views = {"q": qkv[:, :2], "k": qkv[:, 2:4]}
        launch(STORE, [0, qkv.data_ptr()], views, block=(4,))
        assert qkv[0].tolist() == [7] * 4 + [0] * 4
        with pytest.raises(PTXError, match="byte 8 of the storage of q/k"):
            launch(STORE, [0, qkv.data_ptr()], views, block=(5,))

    def test_rows_of_a_huge_storage(self, tmp_path):
        whole = torch.from_file(str(tmp_path / "sparse"), shared=True, size=2**28, dtype=torch.int16)
        rows = whole.as_strided((2, 4), (2**27, 1), 3)
        launch(STORE, [0, rows[1].data_ptr()], {"y": rows}, block=(4,))
        assert rows.tolist() == [[0] * 4, [7] * 4]
        with pytest.raises(PTXError, match="out of bounds"):
            launch(STORE, [0, rows[1].data_ptr()], {"y": rows}, block=(5,))

    def test_accesses_to_several_tensors_at_once(self):
        tensors = {f"y{i}": torch.zeros(1, dtype=torch.int16) for i in range(3)}
        table = torch.tensor([t.data_ptr() for t in tensors.values()])
        body = """
            mov.u32 %r0, %tid.x; mul.wide.u32 %a2, %r0, 8; add.s64 %a2, %a0, %a2; ld.global.u64 %a3, [%a2];
            ld.global.u16 %h0, [%a3]; mov.u16 %h0, 7; st.global.u16 [%a3], %h0;
        """
        launch(body, [table.data_ptr(), 0], {"table": table, **tensors}, block=(3,))
        assert all(t.item() == 7 for t in tensors.values())

    def test_overlapping_bytes_are_refused(self):
        memory, data = Memory(), np.zeros(64, np.uint8)
        memory.add("x", data.ctypes.data, data)
        with pytest.raises(PTXError, match="y overlaps x"):
            memory.add("y", data.ctypes.data + 8, data[8:])

    def test_nothing_is_no_memory(self):
        memory = Memory()
        memory.add_tensor("empty", torch.empty(0, 4))
        assert not memory.regions


def test_counts():
    body = """
        mov.u32 %r0, %tid.x; setp.lt.u32 %p0, %r0, 40; mul.wide.u32 %a2, %r0, 16; add.s64 %a2, %a0, %a2;
        @%p0 ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%a2]; @!%p0 bra $END;
        st.global.v4.u32 [%a2], {%r1, %r2, %r3, %r4};
        $END:
    """
    x = torch.zeros(256, dtype=torch.int32)
    counts = launch(body, [x.data_ptr(), 0], {"x": x}, block=(64,))
    assert counts.instructions["ld.global.v4.u32"] == 64
    assert counts.instructions["st.global.v4.u32"] == 40
    assert counts.warp_instructions["mov.u32"] == 2
    assert counts.warp_instructions["ret"] == 2
    assert counts.loads == {16: 40}
    assert counts.stores == {16: 40}
    assert counts.sectors == {"load": 20, "store": 20}
    assert counts.statements == [64] * 8 + [40, 64]
    assert dict(counts.per_element(64))["mul.wide.u32"] == 1


def test_sectors_are_counted_per_warp():
    body = """
        mov.u32 %r0, %tid.x; mul.wide.u32 %a2, %r0, 32; add.s64 %a2, %a0, %a2; ld.global.u16 %h0, [%a2];
        ld.global.u16 %h1, [%a0];
    """
    x = torch.zeros(64, 16, dtype=torch.int16)
    assert launch(body, [x.data_ptr(), 0], {"x": x}, block=(64,)).sectors == {"load": 64 + 2}
