// SPDX-License-Identifier: Apache-2.0
/*
 * What the machine has, for ACPI. Addresses repeat include/devices/mirrorball/{pci,legacy}.h, which
 * iasl cannot read; tests/unit/test_acpi.c compares them. What depends on the options (the processors,
 * whether COM1 is there) is in an SSDT that src/acpi.c makes.
 */
DefinitionBlock ("dsdt.aml", "DSDT", 2, "MIRROR", "MACHINE", 1)
{
	/* _STA of COM1, in the SSDT. */
	External (\_SB.COMS, IntObj)

	/* SLP_TYP 5 is soft off. There is no other sleeping state. */
	Name (\_S5, Package () { 5, 0, 0, 0 })

	Scope (\_SB)
	{
		Device (PCI0)
		{
			Name (_HID, EisaId ("PNP0A08"))
			Name (_CID, EisaId ("PNP0A03"))
			Name (_UID, 0)
			Name (_SEG, 0)
			Name (_BBN, 0)
			Name (_CRS, ResourceTemplate ()
			{
				WordBusNumber (ResourceProducer, MinFixed, MaxFixed, PosDecode, 0, 0, 0, 0, 1)
				IO (Decode16, 0xcf8, 0xcf8, 1, 8)
				DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable,
					ReadWrite, 0, 0xc0000000, 0xdfffffff, 0, 0x20000000)
			})

			/*
			 * PCI Firmware Specification 3.3, 4.5.1. Everything about PCI Express is the
			 * system's own but the standard hot-plug controller, which does not exist.
			 */
			Method (_OSC, 4, NotSerialized)
			{
				CreateDWordField (Arg3, 0, STAT)
				If (LNotEqual (Arg0, ToUUID ("33db4d5b-1ff7-401c-9657-7441c03dd766")))
				{
					/* Unrecognised UUID */
					Or (STAT, 0x04, STAT)
					Return (Arg3)
				}
				If (LNotEqual (Arg1, 1))
				{
					/* Unrecognised revision */
					Or (STAT, 0x08, STAT)
				}
				If (LGreaterEqual (Arg2, 3))
				{
					CreateDWordField (Arg3, 8, CTRL)
					And (CTRL, 0x1d, Local0)
					If (LNotEqual (Local0, CTRL))
					{
						/* Capabilities masked */
						Or (STAT, 0x10, STAT)
					}
					Store (Local0, CTRL)
				}
				Return (Arg3)
			}
		}

		/* Keeps ECAM out of what the system hands out (PCI Firmware Specification 3.3, 4.1.2). */
		Device (ECAM)
		{
			Name (_HID, EisaId ("PNP0C02"))
			Name (_UID, 0)
			Name (_CRS, ResourceTemplate ()
			{
				Memory32Fixed (ReadWrite, 0xe0000000, 0x00100000)
			})
		}

		Device (COM1)
		{
			Name (_HID, EisaId ("PNP0501"))
			Name (_UID, 0)
			Name (_CRS, ResourceTemplate ()
			{
				IO (Decode16, 0x3f8, 0x3f8, 1, 8)
				Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) { 4 }
			})
			Method (_STA, 0, NotSerialized)
			{
				Return (\_SB.COMS)
			}
		}

		/* Without an interrupt: it only tells the time. */
		Device (RTC)
		{
			Name (_HID, EisaId ("PNP0B00"))
			Name (_CRS, ResourceTemplate ()
			{
				IO (Decode16, 0x70, 0x70, 1, 2)
			})
		}

		Device (PWRB)
		{
			Name (_HID, EisaId ("PNP0C0C"))
			Name (_UID, 0)
		}

		/*
		 * Generic Event Device (ACPI 6.5, 5.6.9): the register says what happened; reading clears
		 * it and takes the interrupt back.
		 */
		Device (GED)
		{
			Name (_HID, "ACPI0013")
			Name (_UID, 0)
			Name (_CRS, ResourceTemplate ()
			{
				Interrupt (ResourceConsumer, Level, ActiveHigh, Exclusive) { 9 }
			})
			OperationRegion (REGS, SystemIO, 0x604, 4)
			Field (REGS, DWordAcc, NoLock, Preserve)
			{
				EVTS, 32
			}
			Method (_EVT, 1, Serialized)
			{
				Store (EVTS, Local0)
				If (And (Local0, 1))
				{
					Notify (\_SB.PWRB, 0x80)
				}
				If (And (Local0, 2))
				{
					Notify (\_SB.VGEN, 0x80)
				}
			}
		}

		/*
		 * Which run of the machine this is (Microsoft, "Virtual Machine Generation ID"): 16 bytes of memory
		 * that are others after a snapshot of it was restored, so that what must be
		 * unique is made anew.
		 */
		Device (VGEN)
		{
			Name (_HID, "MIRR0001")
			Name (_CID, "VM_Gen_Counter")
			Name (_DDN, "VM_Gen_Counter")
			Name (_UID, 0)
			Name (ADDR, Package () { 0x000ff000, 0 })
		}

		/* How a guest that panics says so. */
		Device (PANC)
		{
			Name (_HID, "QEMU0001")
			Name (_CRS, ResourceTemplate ()
			{
				IO (Decode16, 0x505, 0x505, 1, 1)
			})
		}
	}
}
