package rootfs

import "strings"

// scalars are the keys of which the last assignment wins, as the manager's own
// list has them (systemd --dump-configuration-items of version 252, and the
// news files up to version 258). A key that is in neither list accumulates:
// then a change of an assignment that a later one hides is shown too, which is
// the safe side for a directive that is not known.
var scalars = wordSet(`
Accept AcceptFileDescriptors AccuracySec AllowIsolate AppArmorProfile Backlog BindIPv6Only BindLogSockets
BindToDevice BlockIOAccounting BlockIOWeight Broadcast BusName CPUAccounting CPUPressureWatch CPUQuota
CPUQuotaPeriodSec CPUSchedulingPolicy CPUSchedulingPriority CPUSchedulingResetOnFork CPUShares CPUWeight
CacheDirectoryMode CollectMode ConcurrencyHardMax ConcurrencySoftMax ConfigurationDirectoryMode CoredumpFilter
CoredumpReceive DefaultDependencies DefaultInstance DefaultMemoryLow DefaultMemoryMin DefaultStartupMemoryLow
DeferAcceptSec DeferReactivation DeferTrigger DeferTriggerMaxSec Description DevicePolicy DirectoryMode
DynamicUser ExitType ExtensionImagePolicy ExtraOptions FailureAction FailureActionExitStatus
FileDescriptorName FileDescriptorStoreMax FileDescriptorStorePreserve FinalKillSignal FixedRandomDelay
FlushPending ForceUnmount FreeBind Group GuessMainPID IOAccounting IOSchedulingClass IOSchedulingPriority
IOWeight IPAccounting IPCNamespacePath IPTOS IPTTL IgnoreOnIsolate IgnoreSIGPIPE JobRunningTimeoutSec
JobTimeoutAction JobTimeoutRebootArgument JobTimeoutSec KeepAlive KeepAliveIntervalSec KeepAliveProbes
KeepAliveTimeSec KeyringMode KillMode KillSignal LazyUnmount LimitAS LimitCORE LimitCPU LimitDATA LimitFSIZE
LimitLOCKS LimitMEMLOCK LimitMSGQUEUE LimitNICE LimitNOFILE LimitNPROC LimitRSS LimitRTPRIO LimitRTTIME
LimitSIGPENDING LimitSTACK LockPersonality LogLevelMax LogNamespace LogRateLimitBurst LogRateLimitIntervalSec
LogsDirectoryMode MakeDirectory ManagedOOMMemoryPressure ManagedOOMMemoryPressureDurationSec
ManagedOOMMemoryPressureLimit ManagedOOMPreference ManagedOOMSwap Mark MaxConnections MaxConnectionsPerSource
MemoryAccounting MemoryDenyWriteExecute MemoryHigh MemoryKSM MemoryLimit MemoryLow MemoryMax MemoryMin
MemoryPressureThresholdSec MemoryPressureWatch MemorySwapMax MemoryZSwapMax MemoryZSwapWriteback
MessageQueueMaxMessages MessageQueueMessageSize MountAPIVFS MountImagePolicy NUMAPolicy NetworkNamespacePath
Nice NoDelay NoNewPrivileges NonBlocking NotifyAccess OOMPolicy OOMScoreAdjust OnClockChange OnFailureIsolate
OnFailureJobMode OnSuccessJobMode OnTimezoneChange Options PAMName PIDFile PassCredentials
PassFileDescriptorsToExec PassPacketInfo PassSecurity PermissionsStartOnly Persistent Personality PipeSize
PollLimitBurst PollLimitIntervalSec Priority PrivateBPF PrivateDevices PrivateIPC PrivateMounts PrivateNetwork
PrivatePIDs PrivateTmp PrivateUsers ProcSubset ProtectClock ProtectControlGroups ProtectHome ProtectHostname
ProtectKernelLogs ProtectKernelModules ProtectKernelTunables ProtectProc ProtectSystem RandomizedDelaySec
ReadWriteOnly RebootArgument ReceiveBuffer RefuseManualStart RefuseManualStop ReloadSignal RemainAfterElapse
RemainAfterExit RemoveIPC RemoveOnStop Restart RestartKillSignal RestartMaxDelaySec RestartMode RestartSec
RestartSteps RestrictRealtime RestrictSUIDSGID ReusePort RootDirectory RootDirectoryStartOnly RootEphemeral
RootHash RootHashSignature RootImage RootImagePolicy RootVerity RuntimeDirectoryMode RuntimeDirectoryPreserve
RuntimeMaxSec RuntimeRandomizedExtraSec SELinuxContext SELinuxContextFromNet SendBuffer SendSIGHUP SendSIGKILL
Slice SloppyOptions SmackLabel SmackLabelIPIn SmackLabelIPOut SmackProcessLabel SocketGroup SocketMode
SocketProtocol SocketUser SourcePath StandardError StandardInput StandardOutput StartLimitAction
StartLimitBurst StartLimitInterval StartLimitIntervalSec StartupBlockIOWeight StartupCPUShares
StartupCPUWeight StartupIOWeight StartupMemoryHigh StartupMemoryLow StartupMemoryMax StartupMemorySwapMax
StartupMemoryZSwapMax StateDirectoryMode StateDirectoryQuota StopWhenUnneeded SuccessAction
SuccessActionExitStatus SurviveFinalKillSignal SyslogFacility SyslogIdentifier SyslogLevel SyslogLevelPrefix
SystemCallErrorNumber TCPCongestion TTYColumns TTYPath TTYReset TTYRows TTYVHangup TTYVTDisallocate
TasksAccounting TasksMax TimeoutAbortSec TimeoutCleanSec TimeoutIdleSec TimeoutSec TimeoutStartFailureMode
TimeoutStartSec TimeoutStopFailureMode TimeoutStopSec TimerSlackNSec Timestamping Transparent
TriggerLimitBurst TriggerLimitIntervalSec Type UMask USBFunctionDescriptors USBFunctionStrings Unit User
UserNamespacePath UtmpIdentifier UtmpMode WakeSystem WatchdogSec WatchdogSignal What Where WorkingDirectory
Writable`)

// unresettable are the dependencies: an empty assignment leaves them as they
// are (systemd.unit(5): "dependencies cannot be reset to an empty list").
var unresettable = wordSet(`
After Before BindsTo BindTo Conflicts JoinsNamespaceOf OnFailure OnSuccess PartOf PropagateReloadFrom
PropagateReloadTo PropagatesReloadTo PropagatesStopTo ReloadPropagatedFrom Requires RequiresMountsFor Requisite
StopPropagatedFrom Upholds Wants WantsMountsFor`)

// resetGroup names the set of keys that an empty assignment of one of them
// resets together, "" for a key that stands alone: conditions, asserts, a
// socket's addresses, a timer's times, a path unit's paths.
func resetGroup(section, key string) string {
	switch {
	case section == "Unit" && strings.HasPrefix(key, "Condition"):
		return "Condition"
	case section == "Unit" && strings.HasPrefix(key, "Assert"):
		return "Assert"
	case section == "Socket" && strings.HasPrefix(key, "Listen"):
		return "Listen"
	case section == "Timer":
		switch key {
		case "OnActiveSec", "OnBootSec", "OnStartupSec", "OnUnitActiveSec", "OnUnitInactiveSec", "OnCalendar":
			return "On"
		}
	case section == "Path":
		switch key {
		case "PathExists", "PathExistsGlob", "PathChanged", "PathModified", "DirectoryNotEmpty":
			return "Path"
		}
	}
	return ""
}

func wordSet(words string) map[string]bool {
	set := map[string]bool{}
	for w := range strings.FieldsSeq(words) {
		set[w] = true
	}
	return set
}
