"""Environments: tasks of reinforcement learning, as pure functions of their parameters."""

from ._bandit import Bandit as Bandit, Bandits as Bandits, bandit_optimal_value as bandit_optimal_value
from ._grid import GridWorld as GridWorld, GridWorlds as GridWorlds
from ._gymnax import GymnaxEnvironment as GymnaxEnvironment, GymnaxEnvironments as GymnaxEnvironments
from ._mdp import TabularMDP as TabularMDP, TabularMDPs as TabularMDPs, optimal_values as optimal_values
from ._navigation import Navigation as Navigation, Navigations as Navigations, navigation_greedy as navigation_greedy
